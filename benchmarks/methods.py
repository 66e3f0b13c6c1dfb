"""Can the machinery tell methods apart? PCPO against its baseline on each embedded model, several seeds.

    python benchmarks/methods.py                 # runs what is missing, then writes the results
    python benchmarks/methods.py --report-only   # only draws from the runs that are there

Every cell is an ordinary run of `pcpo train`: same model, prompts, noises, sampler, batch, learning rate and clip
range; the two arms of a model differ in `credit` and `objective` only. Evaluation is on fixed prompts and noises. The
targets are relative to the reward before training. Stopped runs are resumed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ["credit.schedule=native", "objective.name=ppo_clip"]
ARMS = {
    "emoji-sd": {"ddpo": ("pcpo_sd", BASELINE), "pcpo": ("pcpo_sd", [])},
    "emoji-sd3": {"flow_grpo": ("pcpo_sd3", BASELINE), "pcpo": ("pcpo_sd3", [])},
}
SHARED = [
    "reward=colorfulness",
    "batch.prompts=6",
    "batch.group_size=8",
    "train.iterations=16",
    "evaluation.every=2",
    "evaluation.num_prompts=16",
    "evaluation.per_prompt=1",
    "run.threads=1",
]
TARGETS = (1.03, 1.05, 1.10)
COLOURS = {"pcpo": "#0072b2", "ddpo": "#d55e00", "flow_grpo": "#d55e00"}


def cell(task: tuple[str, str, int, str]) -> None:
    """Run or resume one (model, arm, seed); a finished cell returns at once."""
    model, arm, seed, folder = task
    output = Path(folder) / f"{model}-{arm}-{seed}"
    if curve(output) and curve(output)[-1][0] == iterations(output):
        return
    from pcpo.trainer.configfile import load_config
    from pcpo.trainer.loop import PCPOTrainer

    preset, overrides = ARMS[model][arm]
    config = load_config(preset, [*SHARED, *overrides, f"name={arm}", f"run.seed={seed}", f"run.output={output}"])
    PCPOTrainer(config=config, quiet=True, resume=output.exists()).train()


def curve(output: Path) -> list[tuple[int, float]]:
    """(iteration, evaluation reward) pairs of a run."""
    path = output / "events.jsonl"
    if not path.is_file():
        return []
    from pcpo.observe.events import read_events

    return [(e.iteration, e.reward_mean) for e in read_events(path).evaluations if e.reward_mean is not None]


def gradient_share(output: Path) -> list[float]:
    """Measured share of the gradient of each trained step, mean over the measurements of a run."""
    from pcpo.observe.events import read_events

    shares = [event.share for event in read_events(output / "events.jsonl").gradient_share]
    return [sum(step) / len(shares) for step in zip(*shares, strict=True)]


def iterations(output: Path) -> int:
    """How many iterations the run was asked for."""
    from pcpo.trainer.configfile import load_config

    return load_config(output / "config.yaml").train.iterations


def time_to(points: list[tuple[int, float]], target: float) -> float | None:
    """First iteration at which the piecewise linear curve reaches the target; None: never."""
    for (i, low), (j, high) in itertools.pairwise(points):
        if low >= target:
            return float(i)
        if high >= target:
            return i + (j - i) * (target - low) / (high - low)
    return None


def collect(folder: Path, seeds: list[int]) -> dict:
    """Curves and iterations to each target of every cell that has run."""
    results: dict = {}
    for model, arms in ARMS.items():
        for arm in arms:
            for seed in seeds:
                points = curve(folder / f"{model}-{arm}-{seed}")
                if len(points) < 2:
                    continue
                start = points[0][1]
                reached = {f"{t:.2f}": time_to(points, t * start) for t in TARGETS}
                run = {
                    "curve": points,
                    "iterations_to": reached,
                    "gradient_share": gradient_share(folder / f"{model}-{arm}-{seed}"),
                }
                results.setdefault(model, {}).setdefault(arm, {})[str(seed)] = run
    return results


def table(results: dict) -> str:
    """Markdown table: mean and range over seeds of the iterations to each target, and of the final reward."""
    head = [
        "model",
        "arm",
        *(f"+{100 * (t - 1):.0f} %" for t in TARGETS),
        "rise in all",
        "largest gradient share of a step",
    ]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for model, arms in results.items():
        for arm, seeds in arms.items():
            cells = []
            for t in TARGETS:
                found = [run["iterations_to"][f"{t:.2f}"] for run in seeds.values()]
                cells.append(spread([f for f in found if f is not None], len(found)))
            rises = [100 * (run["curve"][-1][1] / run["curve"][0][1] - 1) for run in seeds.values()]
            shares = [100 * max(run["gradient_share"]) for run in seeds.values()]
            ends = [f"{spread(values, len(values))} %" for values in (rises, shares)]
            lines.append(" | ".join([model, arm, *cells, *ends]))
    return "\n".join(f"| {line} |" for line in lines)


def spread(values: list[float], runs: int, digits: int = 1) -> str:
    """mean (min to max), and how many runs got there if not all."""
    if not values:
        return "never"
    text = f"{sum(values) / len(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return text if len(values) == runs else f"{text}, {len(values)} of {runs} runs"


def figure(results: dict, path: Path) -> None:
    """Evaluation reward over iterations: a line per seed, a bold mean per arm."""
    fig, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 3.4), squeeze=False)
    for axis, (model, arms) in zip(axes[0], results.items(), strict=True):
        for arm, seeds in arms.items():
            curves = [run["curve"] for run in seeds.values()]
            for points in curves:
                axis.plot(*zip(*points, strict=True), color=COLOURS[arm], alpha=0.35, linewidth=1)
            steps = [i for i, _ in min(curves, key=len)]
            mean = [sum(c[n][1] for c in curves) / len(curves) for n in range(len(steps))]
            axis.plot(steps, mean, color=COLOURS[arm], linewidth=2.5, label=f"{arm} (mean of {len(curves)} seeds)")
        axis.set(title=model, xlabel="iteration", ylabel="evaluation reward (colorfulness)")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)


def main() -> None:
    """Run the missing cells, then write JSON, table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "methods", help="folder of the run folders")
    parser.add_argument("--models", nargs="+", choices=sorted(ARMS), default=sorted(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--report-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report_only:
        os.environ["OMP_NUM_THREADS"] = "1"
        tasks = [
            (model, arm, seed, str(arguments.runs))
            for seed in arguments.seeds
            for model in arguments.models
            for arm in ARMS[model]
        ]
        with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
            pool.map(cell, tasks, chunksize=1)
    results = collect(arguments.runs, arguments.seeds)
    target = ROOT / "benchmarks" / "results" / "methods.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"settings": SHARED, "targets": TARGETS, "results": results}, indent=1) + "\n")
    figure(results, ROOT / "docs" / "results" / "methods.png")
    print(table(results))


if __name__ == "__main__":
    main()
