"""What does each means of going faster bring by itself? Kept ones are settings; the others are named with their number.

    python benchmarks/means.py --threads 1              # writes benchmarks/results/means.json

Forward, forward and backward, and decoding of 16 guided pictures, and an optimiser step on the LoRA, each variant in
turn with the plain one. `first` is the first call, so for torch.compile the time that compiling takes. bf16 is measured
by pictures a call too: what it costs in casts it gains in products, and those grow with the call.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pcpo.models.base import Adapter
from pcpo.models.folded import folded
from pcpo.models.folders import read_header
from pcpo.models.loading import adapter_class, load_adapter
from pcpo.models.lora import add_lora, trainable
from timing import RESULTS, header, interleaved, ratio, spread, write

PICTURES, RANK = 16, 16
CALLS = (1, 4, 16, 64)


def plain(adapter: Adapter) -> None:
    """Nothing."""


def channels_last(adapter: Adapter) -> None:
    for part in (adapter.unwrapped, adapter.pipe.vae):
        part.to(memory_format=torch.channels_last)


def bf16(adapter: Adapter) -> None:
    adapter.use_precision(torch.bfloat16)


def compiled(adapter: Adapter) -> None:
    adapter.compile()


def folded_lora(adapter: Adapter) -> None:
    HELD.enter_context(folded(adapter.unwrapped))


VARIANTS: dict[str, Callable[[Adapter], None]] = {
    "plain": plain,
    "channels_last": channels_last,
    "bf16": bf16,
    "compile": compiled,
    "folded LoRA": folded_lora,
}
HELD = contextlib.ExitStack()  # a variant that is a context stays entered


def load(model: str) -> Adapter:
    """A model as the presets train it: with a LoRA, and one zero token for the T5 that emoji-sd3 does not have."""
    takes_length = adapter_class(read_header(model)).takes_text_length
    adapter = load_adapter(model, max_sequence_length=1 if takes_length else None)
    torch.manual_seed(0)
    add_lora(adapter, RANK)
    return adapter


def work(adapter: Adapter, pictures: int = PICTURES, fused: bool = False) -> dict[str, Callable[[], object]]:
    """The parts of an iteration whose time a variant may change, on that many pictures a call."""
    parameters = [p for _, p in trainable(adapter.unwrapped)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-9, fused=fused)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(pictures, *adapter.latent_shape, generator=generator)
    timestep = adapter.grid(10).timesteps.float()[:1].expand(pictures)
    cond, index = adapter.encode(["red apple"]), torch.zeros(pictures, dtype=torch.long)

    def forward() -> None:
        with torch.no_grad():
            adapter.predict(x, timestep, cond, index, 5.0)

    def both() -> None:
        optimizer.zero_grad()
        adapter.predict(x, timestep, cond, index, 5.0).square().mean().backward()

    return {
        "forward": forward,
        "forward and backward": both,
        "optimiser": optimizer.step,
        "decode": lambda: adapter.decode(x),
    }


def measure(model: str, variants: Sequence[str], repeats: int) -> dict[str, Any]:
    """Variant -> part -> processor seconds, and the plain one's over them."""
    sides: dict[str, Callable[[], object]] = {}
    for name in ("plain", *variants, "fused AdamW"):
        adapter = load(model)
        VARIANTS.get(name, plain)(adapter)
        sides |= {f"{name}|{part}": run for part, run in work(adapter, fused=name == "fused AdamW").items()}
    first = interleaved(sides, 1, warm_up=0)
    times = interleaved(sides, repeats)
    found: dict[str, Any] = {}
    for side, clocks in times.items():
        name, part = side.split("|")
        found.setdefault(name, {})[part] = {
            "cpu": spread(clocks["cpu"]),
            "first": first[side]["cpu"][0],
            "faster": ratio(times, f"plain|{part}", side, "cpu"),
        }
    return found


def by_size(model: str, calls: Sequence[int], repeats: int) -> dict[str, Any]:
    """Pictures a call -> part -> the plain one's processor time over that of bf16."""
    adapters = {name: load(model) for name in ("plain", "bf16")}
    bf16(adapters["bf16"])
    found: dict[str, Any] = {}
    for pictures in calls:
        parts = {name: work(adapter, pictures) for name, adapter in adapters.items()}
        sides = {f"{name}|{part}": parts[name][part] for part in ("forward", "forward and backward") for name in parts}
        times = interleaved(sides, repeats)
        found[str(pictures)] = {
            part: ratio(times, f"plain|{part}", f"bf16|{part}", "cpu") for part in ("forward", "forward and backward")
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["emoji-sd", "emoji-sd3"])
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS)[1:], default=list(VARIANTS)[1:])
    parser.add_argument("--calls", nargs="*", type=int, default=list(CALLS), help="pictures a call, for bf16 by size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "means.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # the first call compiles, whatever ran before
    results = header("plain over variant, by processor time", threads=args.threads, repeats=args.repeats)
    results["models"] = {model: measure(model, args.variants, args.repeats) for model in args.models}
    results["bf16 by size"] = {model: by_size(model, args.calls, args.repeats) for model in args.models}
    for model, sizes in results["bf16 by size"].items():
        for pictures, parts in sizes.items():
            print(model, "bf16", pictures, {part: round(found["ratio"], 2) for part, found in parts.items()})
    for model, variants in results["models"].items():
        for name, parts in variants.items():
            print(model, name, {part: round(found["faster"]["ratio"], 2) for part, found in parts.items()})
    write(args.output, results)


if __name__ == "__main__":
    main()
