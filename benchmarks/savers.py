"""Less memory for an update: what do smaller calls and gradient checkpointing cost, and how much does each save?

    python benchmarks/savers.py --threads 1             # writes benchmarks/results/savers.json

Forward and backward of 16 (picture, step) pairs with guidance, in calls of 16, 8, 4, 2 and 1, with and without
checkpointing, in turn. Memory is that of the activations, counted by `pcpo.plan`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pcpo.models.loading import load_adapter
from pcpo.models.lora import add_lora
from pcpo.plan.memory import simulated
from pcpo.trainer.config import Config
from timing import RESULTS, header, interleaved, ratio, spread, write

PAIRS, RANK = 16, 16
SIZES = (16, 8, 4, 2, 1)


def update(model: str, size: int, checkpointing: bool) -> Callable[[], None]:
    """The gradient of all pairs, in calls of `size`."""
    adapter = load_adapter(model)
    torch.manual_seed(0)
    add_lora(adapter, RANK)
    if checkpointing:
        adapter.unwrapped.enable_gradient_checkpointing()
    x = torch.randn(PAIRS, *adapter.latent_shape, generator=torch.Generator().manual_seed(0))
    timestep = adapter.grid(10).timesteps.float()[:1].expand(PAIRS)
    cond, index = adapter.encode(["red apple"]), torch.zeros(PAIRS, dtype=torch.long)

    def run() -> None:
        for start in range(0, PAIRS, size):
            rows = slice(start, start + size)
            out = adapter.predict(x[rows], timestep[rows], cond, index[rows], 5.0)
            out.square().mean().backward()

    return run


def activations(model: str, size: int, checkpointing: bool) -> float:
    """MiB of a call of `size` pairs."""
    flow = {"sampler": {"name": "flow_sde"}, "credit": {"schedule": "proportional"}} if model == "emoji-sd3" else {}
    settings = {"model": {"path": model, "gradient_checkpointing": checkpointing}, **flow}
    activations, _ = simulated(Config.model_validate(settings))
    return activations.training.at(size) / 2**20


def name(size: int, checkpointing: bool) -> str:
    """Of one side."""
    return f"{size} a call{', checkpointing' * checkpointing}"


def measure(model: str, repeats: int) -> dict[str, Any]:
    """Side -> processor seconds, how many times slower than one call of all, and MiB of activations."""
    kinds = [(size, checkpointing) for checkpointing in (False, True) for size in SIZES]
    times = interleaved({name(*kind): update(model, *kind) for kind in kinds}, repeats)
    return {
        name(*kind): {
            "cpu": spread(times[name(*kind)]["cpu"]),
            "slower": ratio(times, name(*kind), name(PAIRS, False), "cpu"),
            "mib": activations(model, *kind),
        }
        for kind in kinds
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["emoji-sd", "emoji-sd3"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "savers.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = header("variant over one call, by processor time", threads=args.threads, repeats=args.repeats)
    results["models"] = {model: measure(model, args.repeats) for model in args.models}
    for model, sides in results["models"].items():
        for side, found in sides.items():
            print(model, side, f"{found['slower']['ratio']:.2f} x, {found['mib']:.0f} MiB")
    write(args.output, results)


if __name__ == "__main__":
    main()
