"""What does a change do to the speed? Runs two commits in turn and prints one over the other.

    python benchmarks/compare.py main~5 main
    python benchmarks/compare.py main~5 main --presets pcpo_sd3 --set batch.group_size=8 --turns 6

Each commit is checked out in a worktree of its own and its package runs in processes of its own, in turn: A B A B ...
Every process times a few iterations after two to warm up; a turn's number is the least of them. The script that
measures is this commit's, so both are measured alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHILD = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pcpo import PCPOTrainer, load_config
from pcpo.observe.events import EventWriter
settings = json.loads(sys.argv[2])
trainer = PCPOTrainer(config=load_config(settings["preset"], settings["set"]), quiet=True)
seconds = []
for turn in range(-2, settings["iterations"]):
    with EventWriter(trainer.folder / "events.jsonl") as events:
        began = time.process_time(), time.perf_counter()
        trainer.learner.run(events)
        if turn >= 0:
            seconds.append((time.process_time() - began[0], time.perf_counter() - began[1]))
print(json.dumps({"cpu": min(c for c, _ in seconds), "wall": min(w for _, w in seconds)}))
"""


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def once(source: Path, preset: str, settings: Sequence[str], iterations: int) -> dict[str, float]:
    """Least seconds of an iteration of the package in `source`."""
    with tempfile.TemporaryDirectory() as folder:
        job = {"preset": preset, "set": [*settings, f"run.output={folder}/run"], "iterations": iterations}
        environment = {**os.environ, "PYTHONPATH": str(source / "src")}
        command = [sys.executable, "-c", CHILD, str(source / "src"), json.dumps(job)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def effect(times: Sequence[Sequence[dict[str, float]]], clock: str) -> dict[str, float]:
    """B over A: median over median, with the least and the greatest of a turn."""
    a, b = ([turn[clock] for turn in side] for side in times)
    each = [y / x for x, y in zip(a, b, strict=True)]
    return {"ratio": statistics.median(b) / statistics.median(a), "min": min(each), "max": max(each)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--presets", nargs="+", default=["pcpo_sd", "pcpo_sd3"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, as in pcpo train")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=2, help="timed in every process")
    parser.add_argument("--output", type=Path, help="also write JSON")
    args = parser.parse_args(argv)
    commits = [git("rev-parse", "--short", commit) for commit in args.commits]
    settings = ["batch.prompts=2", "batch.group_size=4", "evaluation.credit_probe=0", *args.set]
    results: dict[str, Any] = {"commits": commits, "settings": settings, "presets": {}}
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / name for name in ("a", "b")]
        try:
            for tree, commit in zip(trees, commits, strict=True):
                git("worktree", "add", "--detach", str(tree), commit)
            for preset in args.presets:
                times: list[list[dict[str, float]]] = [[], []]
                for _ in range(args.turns):
                    for side, tree in zip(times, trees, strict=True):
                        side.append(once(tree, preset, settings, args.iterations))
                found = results["presets"][preset] = {clock: effect(times, clock) for clock in ("cpu", "wall")}
                for clock, (ratio, low, high) in ((c, tuple(v.values())) for c, v in found.items()):
                    print(f"{preset} {clock}: {commits[1]} / {commits[0]} = {ratio:.3f} ({low:.3f} to {high:.3f})")
        finally:
            for tree in trees:
                if tree.is_dir():
                    git("worktree", "remove", "--force", str(tree))
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
