"""Draw the README's figures from a finished run: before and after, and the reward curve.

pcpo train demo --output runs/demo && python benchmarks/demo_figures.py runs/demo
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pcpo.observe.events import read_events

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "results"


def before_after(run: Path, target: Path, columns: int = 8) -> None:
    """Two rows of pictures, same prompts and noises: before training and after."""
    evaluations = read_events(run / "events.jsonl").evaluations
    first, last = evaluations[0], evaluations[-1]
    step = max(1, len(first.pictures) // columns)
    fig, axes = plt.subplots(2, columns, figsize=(1.25 * columns, 3.0))
    for row, event in zip(axes, (first, last), strict=True):
        for axis, n in zip(row, range(0, step * columns, step), strict=True):
            axis.imshow(plt.imread(run / event.pictures[n]), interpolation="bicubic")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if event is first:
                axis.set_title(event.prompts[n], fontsize=8)
        row[0].set_ylabel(f"iteration {event.iteration}\nreward {event.reward_mean:.1f}", fontsize=9)
    fig.tight_layout(pad=0.4)
    fig.savefig(target, dpi=120)


def reward_curve(run: Path, target: Path) -> None:
    """Training reward with its spread over pictures, and the evaluations."""
    log = read_events(run / "events.jsonl")
    steps = [e.iteration for e in log.iterations]
    mean = [e.reward_mean for e in log.iterations]
    low = [e.reward_mean - e.reward_std for e in log.iterations]
    high = [e.reward_mean + e.reward_std for e in log.iterations]
    fig, axis = plt.subplots(figsize=(6.4, 2.8))
    axis.fill_between(steps, low, high, color="#0072b2", alpha=0.15, linewidth=0, label="+- 1 std of the pictures")
    axis.plot(steps, mean, color="#0072b2", label="training pictures, mean")
    points = [(e.iteration, e.reward_mean) for e in log.evaluations]
    axis.plot(*zip(*points, strict=True), "D-", color="#d55e00", label="evaluation, fixed prompts and noises")
    axis.set(xlabel="iteration", ylabel="reward: " + ", ".join(p["name"] for p in log.run_start.config["reward"]))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    fig.tight_layout()
    fig.savefig(target, dpi=120)


def record(runs: list[Path], target: Path) -> None:
    """Evaluation reward before and after, rise and seconds of every run, with the machine that ran them."""
    logs = [read_events(run / "events.jsonl") for run in runs]
    figures = [
        {
            "seed": log.run_start.config["run"]["seed"],
            "threads": log.run_start.config["run"]["threads"] or log.run_start.environment.get("cpu_count"),
            "before": log.evaluations[0].reward_mean,
            "after": log.evaluations[-1].reward_mean,
            "rise": log.evaluations[-1].reward_mean / log.evaluations[0].reward_mean - 1,
            "seconds": log.end.seconds,
        }
        for log in logs
    ]
    result = {"config": logs[0].run_start.config, "environment": logs[0].run_start.environment, "runs": figures}
    target.write_text(json.dumps(result, indent=1) + "\n")
    for figure in figures:
        print(
            "seed {seed}, {threads} threads: {before:.2f} -> {after:.2f} ({rise:+.1%}) in {seconds:.0f} s".format(
                **figure
            )
        )


if __name__ == "__main__":
    folders = [Path(name) for name in sys.argv[1:]]
    TARGET.mkdir(parents=True, exist_ok=True)
    before_after(folders[0], TARGET / "demo-before-after.png")
    reward_curve(folders[0], TARGET / "demo-curve.png")
    record(folders, ROOT / "benchmarks" / "results" / "demo.json")
