"""Which part of an iteration needs how much memory, and does it grow with the number of pictures?

    python benchmarks/memory.py                         # writes benchmarks/results/memory.json

Every case runs in a process of its own. A part's peak is the highest resident memory during it (on CUDA: of allocated
memory), over what was there before the first iteration. Calls have one size, so what may grow with the pictures is the
trajectory: float32 states, noises and old predictions of the trained steps, whose size is stated beside.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from overhead import Iteration, configure
from timing import RESULTS, child, header, resident_mib, write

PICTURES = (4, 8, 16, 32)
SETTINGS = ["batch.prompts=2", "batch.rollout=4", "train.updates=1", "sampler.steps=8"]
MIB = 2**20


class Peaks:
    """The peak since it was last asked, in MiB over where it began."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        self.base = 0.0
        self.base = self.read(peak=False)
        self.reset()

    def read(self, peak: bool = True) -> float:
        if not self.cuda:
            return resident_mib(peak) - self.base
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / MIB - self.base

    def reset(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", "ascii")

    def take(self) -> float:
        found = self.read()
        self.reset()
        return found


def parts(model: str, pictures: int, overrides: Sequence[str]) -> dict[str, float]:
    """Peaks of the parts of an iteration, of the first one; and the size of its trajectory."""
    with tempfile.TemporaryDirectory() as folder:
        config = configure(model, folder, [*SETTINGS, f"batch.group_size={pictures // 2}", *overrides])
        run = Iteration(config)
        learner, adapter = run.trainer.learner, run.trainer.adapter
        peaks, found = Peaks(), {"rollout": 0.0, "decode": 0.0}
        decode = adapter.decode

        def measured(latents: torch.Tensor) -> torch.Tensor:
            found["rollout"] = max(found["rollout"], peaks.take())
            out = decode(latents)
            found["decode"] = max(found["decode"], peaks.take())
            return out

        adapter.decode = measured  # type: ignore[method-assign]
        run()
        found["update"] = peaks.take()
        steps = len(learner.algorithm.trained(0))
    size = torch.Size(adapter.latent_shape).numel()
    stored = 2 if getattr(config.train, "replay", False) else 3
    found["trajectory"] = pictures * (steps * (stored * size + 1) + size) * 4 / MIB
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["emoji-sd", "emoji-sd3"])
    parser.add_argument("--pictures", type=int, nargs="+", default=list(PICTURES))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        torch.set_num_threads(1)
        return print(json.dumps(parts(args.models[0], args.pictures[0], args.set)))
    results: dict[str, Any] = header("peak MiB over the loaded model", unit="MiB")
    results["models"] = {}
    for model in args.models:
        rows = results["models"][model] = []
        for pictures in args.pictures:
            line = child("--one", "--models", model, "--pictures", str(pictures), "--set", *args.set)
            rows.append({"pictures": pictures, **json.loads(line)})
            print(f"{model}: {rows[-1]}")
    write(args.output, results)


if __name__ == "__main__":
    main()
