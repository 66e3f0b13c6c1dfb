"""How many pictures and iterations a second, by model, batch and steps?

    python benchmarks/throughput.py --threads 1         # writes benchmarks/results/throughput.json

An iteration is all that training does: sampling, decoding, reward, update (one pass over all steps). Every case is run
in turn with the others.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from overhead import Iteration, configure
from timing import RESULTS, header, interleaved, spread, write

CASES = {"pictures": [(2, 2), (4, 4)], "steps": [5, 10]}


def measure(
    model: str, cases: dict[str, list[Any]], repeats: int, overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One row for every batch and number of steps."""
    sides, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for prompts, group in cases["pictures"]:
            for steps in cases["steps"]:
                name = f"{prompts * group}-{steps}"
                shape = [f"batch.prompts={prompts}", f"batch.group_size={group}", f"sampler.steps={steps}"]
                sides[name] = Iteration(configure(model, f"{folder}/{name}", [*shape, "train.updates=1", *overrides]))
                rows.append({"name": name, "pictures": prompts * group, "steps": steps})
        times = interleaved(sides, repeats)
    for row in rows:
        for clock, seconds in times[row.pop("name")].items():
            row[clock] = {
                "iterations_per_second": spread([1 / s for s in seconds]),
                "pictures_per_second": spread([row["pictures"] / s for s in seconds]),
            }
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["emoji-sd", "emoji-sd3"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, as in pcpo train")
    parser.add_argument("--output", type=Path, default=RESULTS / "throughput.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = header("training iterations per second", threads=args.threads, repeats=args.repeats)
    results["models"] = {model: measure(model, CASES, args.repeats, args.set) for model in args.models}
    for model, rows in results["models"].items():
        for row in rows:
            rate = row["wall"]["pictures_per_second"]["median"]
            print(f"{model} {row['pictures']} pictures, {row['steps']} steps: {rate:.2f} pictures/s")
    write(args.output, results)


if __name__ == "__main__":
    main()
