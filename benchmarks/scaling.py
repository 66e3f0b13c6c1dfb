"""Does the cost of an iteration grow in proportion to pictures, steps and pixels?

    python benchmarks/scaling.py --threads 1            # writes benchmarks/results/scaling.json

Along each axis the work is measured at three sizes, and a line a + b x is fitted to the processor
seconds. `linearity` is the largest distance of a measured point from that line, over the point; `fixed` is a, the part
that does not grow, over the middle point. Pixels are those of the latent; a transformer's attention grows with their
square, which the bare model calls beside it show (`model_linearity`), so the library is judged by `beyond_model`: the
largest change of iteration over model calls along the axis.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from overhead import Iteration, ModelCalls, configure
from timing import RESULTS, header, interleaved, write

MIDDLE = {"batch.group_size": 4, "sampler.steps": 8, "model.resolution": 64}
AXES: dict[str, tuple[str, Sequence[int]]] = {
    "pictures": ("batch.group_size", (2, 4, 8)),
    "steps": ("sampler.steps", (4, 8, 16)),
    "pixels": ("model.resolution", (32, 48, 64)),
}
SETTINGS = ["batch.prompts=2", "train.updates=1", "batch.rollout=4"]  # calls of one shape, whatever their number


def amount(axis: str, value: int) -> int:
    """What the cost should be proportional to."""
    return value**2 if axis == "pixels" else value


def linearity(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Largest relative distance from the best line through the points, and its value at 0 over the middle point.

    The line is fitted by least squares of relative distances.
    """
    slope, constant = np.polyfit(x, y, 1, w=1 / np.asarray(y))
    distances = [abs(constant + slope * a - b) / b for a, b in zip(x, y, strict=True)]
    return float(max(distances)), float(constant / y[len(y) // 2])


def measure(model: str, axis: str, repeats: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Processor seconds of iterations and of their bare model calls along one axis."""
    key, values = AXES[axis]
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        for value in values:
            settings = {**MIDDLE, key: value}
            if axis != "pixels":
                del settings["model.resolution"]
            config = configure(
                model, f"{folder}/{value}", [*SETTINGS, *(f"{k}={v}" for k, v in settings.items()), *overrides]
            )
            sides[f"iteration-{value}"] = Iteration(config)
            sides[f"model-{value}"] = ModelCalls(config)
        times = interleaved(sides, repeats)
    work = [float(amount(axis, value)) for value in values]
    # the least of several runs: what a busy machine adds to a run is never negative
    seconds = {side: [min(times[f"{side}-{value}"]["cpu"]) for value in values] for side in ("iteration", "model")}
    distance, fixed = linearity(work, seconds["iteration"])
    ratios = [a / b for a, b in zip(seconds["iteration"], seconds["model"], strict=True)]
    return {
        "setting": key,
        "values": list(values),
        "seconds": seconds,
        "linearity": distance,
        "fixed": fixed,
        "model_linearity": linearity(work, seconds["model"])[0],
        "beyond_model": max(ratios) / min(ratios) - 1,
        "spread": max(max(t["cpu"]) / statistics.median(t["cpu"]) - 1 for t in times.values()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["emoji-sd", "emoji-sd3"])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = header("cost along an axis", target=0.05, threads=args.threads, repeats=args.repeats)
    results["models"] = {}
    for model in args.models:
        results["models"][model] = {axis: measure(model, axis, args.repeats, args.set) for axis in args.axes}
        for axis, found in results["models"][model].items():
            print(f"{model} {axis}: {100 * found['linearity']:.1f} % off a line", end=", ")
            print(f"{100 * found['beyond_model']:.1f} % beyond the model's own growth")
    write(args.output, results)


if __name__ == "__main__":
    main()
