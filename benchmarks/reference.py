"""How fast is an iteration of the library beside a loop as the published scripts write it?

    python benchmarks/reference.py --threads 1          # writes benchmarks/results/reference.json

`loops.py` is the other side: the same embedded models, LoRA, pictures, steps, updates, reward and loss (DDPO's and
Flow-GRPO's: native credit, clipped ratio), written by us in the style of those scripts, so it stands in for them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from loops import LOOPS
from overhead import Iteration
from pcpo import load_config
from pcpo.models.folders import read_header
from pcpo.models.loading import adapter_class
from pcpo.trainer.config import Config
from timing import RESULTS, header, interleaved, ratio, summary, write

PRESETS = {"diffusion": "ddpo", "flow": "flow_grpo"}
SETTINGS = [
    "prompts=[red apple, blue fish, green tree, yellow sun]",
    "credit.schedule=native",
    "credit.apply=ratio",
    "objective.name=ppo_clip",
    "advantage.name=grpo",
    "kl.form=none",
    "kl.beta=0",
    "train.select=all",
    "train.fraction=1",
    "train.updates=2",
    "evaluation.credit_probe=0",
]
# pictures, steps: what one device of the published runs holds at a time, and a batch that fills a call
SIZES = {"small": (2, 2, 10), "medium": (4, 4, 10)}
TARGET = 1.5


def kind(model: str) -> str:
    """ "diffusion" or "flow"."""
    return adapter_class(read_header(model)).kind


def configure(model: str, folder: str, size: Sequence[int], overrides: Sequence[str] = ()) -> Config:
    """Equal settings for both sides; size: prompts, pictures of each, steps."""
    shape = [f"batch.prompts={size[0]}", f"batch.group_size={size[1]}", f"sampler.steps={size[2]}"]
    preset = PRESETS[kind(model)]
    return load_config(preset, [f"model.path={model}", *SETTINGS, *shape, *overrides, f"run.output={folder}/run"])


def compare(model: str, size: Sequence[int], repeats: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Times of both sides and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        config = configure(model, folder, size, overrides)
        sides: dict[str, Callable[[], None]] = {"reference": LOOPS[kind(model)](config), "library": Iteration(config)}
        times = interleaved(sides, repeats)
    return {
        "pictures": config.pictures,
        "steps": config.sampler.steps,
        "updates": config.train.updates,
        "seconds": summary(times),
        **{clock: ratio(times, "reference", "library", clock) for clock in ("wall", "cpu")},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["emoji-sd", "emoji-sd3"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS / "reference.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = header("reference loop / library iteration", target=TARGET, threads=args.threads, repeats=args.repeats)
    results["models"] = {}
    for model in args.models:
        results["models"][model] = {}
        for size in args.sizes:
            found = results["models"][model][size] = compare(model, SIZES[size], args.repeats, args.set)
            low, high = found["cpu"]["min"], found["cpu"]["max"]
            print(f"{model} {size}: {found['cpu']['ratio']:.2f} ({low:.2f} to {high:.2f}) by processor time")
    write(args.output, results)


if __name__ == "__main__":
    main()
