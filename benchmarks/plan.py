"""How good are the estimates of `pcpo plan`? Peak resident memory of a real iteration against them, process by process.

    python benchmarks/plan.py             # embedded models on the CPU; writes benchmarks/results/plan.json and the page
    python benchmarks/plan.py --page      # the tables of docs/how-to/plan-memory.md from the JSON and the architectures

Every figure comes from a process of its own: one runs an iteration and reads its own peak, one plans without a probe,
one with. The memory presets are sized by the same estimates, from published architectures, without weights.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from architectures import NAMES, write_folder
from pcpo.data.files import write_text_atomic
from pcpo.observe.environment import environment
from pcpo.plan.memory import GIB, estimate, model_of
from pcpo.trainer.configfile import load_config, memory_presets

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results/plan.json"
PAGE = ROOT / "docs/how-to/plan-memory.md"
PRESETS = {"sd15": "pcpo_sd15", "sdxl": "pcpo_sdxl", "sd35": "pcpo_sd35", "flux": "pcpo_flux"}
COMMON = ["sampler.steps=4", "evaluation.credit_probe=0", "evaluation.num_prompts=2", "run.threads=1", "run.device=cpu"]
CASES = [
    (preset, [*COMMON, *changes])
    for preset in ("pcpo_sd", "pcpo_sd3")
    for changes in (
        ["batch.group_size=4"],
        ["batch.group_size=8"],
        ["batch.group_size=16"],
        ["batch.group_size=16", "batch.rollout=16"],
        ["batch.group_size=16", "model.gradient_checkpointing=true"],
        # not among those that the constant of the C library was taken from
        ["batch.group_size=8", "model.gradient_checkpointing=true"],
        ["batch.group_size=8", "model.tune=full"],
        ["batch.group_size=8", "kl.form=exact", "kl.beta=0.1", "model.gradient_checkpointing=true"],
    )
]


def iterate(preset: str, changes: list[str]) -> int:
    """Peak bytes of this process after one iteration."""
    from pcpo import PCPOTrainer
    from pcpo.observe.events import EventWriter

    with tempfile.TemporaryDirectory() as folder:
        trainer = PCPOTrainer(config=load_config(preset, [*changes, f"run.output={folder}/run"]), quiet=True)
        trainer.folder.mkdir()
        with EventWriter(trainer.folder / "events.jsonl") as events:
            trainer.learner.run(events)
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def planned(preset: str, changes: list[str], *, run_probe: bool) -> int:
    """Peak bytes that a plan gives."""
    from pcpo.plan.command import make_plan

    return make_plan(load_config(preset, changes), run_probe=run_probe).memory.peak


def figure(what: str, preset: str, changes: list[str]) -> int:
    """One of the three figures, from a process of its own."""
    command = [sys.executable, __file__, "--child", what, preset, *changes]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def measure() -> None:
    """All cases, to the JSON file."""
    rows = []
    for preset, changes in CASES:
        row = {what: figure(what, preset, changes) for what in ("measured", "counted", "probed")}
        rows.append({"preset": preset, "changes": changes[len(COMMON) :], **row})
        print(preset, changes[len(COMMON) :], {key: f"{size / 2**20:.0f} MiB" for key, size in row.items()}, flush=True)
    write_text_atomic(RESULTS, json.dumps({"environment": environment(), "cases": rows}, indent=1) + "\n")


def measured_table() -> str:
    """Measured peaks and what the plans said."""
    rows = ["| preset, settings | measured | counted | off by | probed | off by |", f"|{' --- |' * 6}"]
    for case in json.loads(RESULTS.read_text("utf-8"))["cases"]:
        real = case["measured"]
        cells = [f"{case['preset']}, {', '.join(f'`{c}`' for c in case['changes'])}", f"{real / 2**20:.0f} MiB"]
        for what in ("counted", "probed"):
            cells += [f"{case[what] / 2**20:.0f} MiB", f"{case[what] / real - 1:+.0%}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def presets_table() -> str:
    """Estimated peak of every memory preset."""
    head = ["model, preset", *memory_presets(NAMES[0])]
    rows = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for name in PRESETS:
        cells = [f"`{PRESETS[name]}`"]
        for size, value in memory_presets(name).items():
            if not isinstance(value, dict):
                cells.append("does not fit")
                continue
            with tempfile.TemporaryDirectory() as folder:
                given = [f"model.path={write_folder(name, Path(folder))}", "run.device=cuda"]
                plan = estimate(model_of(load_config(PRESETS[name], given, size)), 50)
            cells.append(f"{plan.peak / GIB:.1f} GiB")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def write_page() -> None:
    """Put the tables between their marks."""
    text = PAGE.read_text("utf-8")
    for mark, table in (("presets", presets_table()), ("measured", measured_table())):
        block = f"<!-- {mark} -->\n{table}<!-- end -->"
        text = re.sub(rf"<!-- {mark} -->\n.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    write_text_atomic(PAGE, text)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="the page only")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, preset, *changes = given.child
        print(iterate(preset, changes) if what == "measured" else planned(preset, changes, run_probe=what == "probed"))
        return
    if not given.page:
        measure()
    write_page()


if __name__ == "__main__":
    main()
