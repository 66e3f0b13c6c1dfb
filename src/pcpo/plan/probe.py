"""A few calls of the real model: how long they take, and what memory they need."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pcpo.data.prompts import Prompt
from pcpo.models.lora import add_lora, trainable
from pcpo.objectives.compose import make_objective
from pcpo.plan.counts import Counts
from pcpo.plan.memory import Activations, Line
from pcpo.trainer.config import Config
from pcpo.trainer.model import folding, prepare_adapter
from pcpo.trainer.parts import build_algorithm
from pcpo.trainer.step import Policy, Update
from pcpo.types import Trajectory

# Rows of a probing call are at most twice this; larger calls are extrapolated.
LARGEST = 16


@dataclass(frozen=True)
class Measured:
    """Seconds of a model call by its rows, and bytes as in `Activations` (None where they cannot be measured).

    process: on the CPU, resident bytes besides the model's tensors, once every kind of call has been made.
    """

    sampling: Line
    training: Line
    decoding: Line
    activations: Activations | None
    process: int | None

    def iteration(self, counts: Counts) -> dict[str, float]:
        """Seconds of an iteration by phase; the reward's own time and the credit probe are not in it."""
        return {
            "rollout": counts.rollout_calls * self.sampling.at(counts.rollout_size),
            "decoding": counts.pictures / counts.rollout_size * self.decoding.at(counts.rollout_size),
            "update": counts.update_calls * self.training.at(counts.update_size)
            + counts.reference_calls * self.sampling.at(counts.update_size),
        }


class PeakMeter:
    """Bytes over what was there before: of the device's allocator, or of this process where Linux lets us reset it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def measure(self, call: Callable[[], None]) -> int | None:
        """Run a call; its peak over the memory before it, None where this system cannot tell."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            allocated = torch.cuda.memory_allocated(self.device)
            call()
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - allocated
        resident = reset_resident_peak() if self.device.type == "cpu" else None
        call()
        return None if resident is None else max(0, _status("VmHWM") - resident)


def probe(config: Config, counts: Counts, prompts: list[Prompt], device: torch.device) -> Measured:
    """Load the model and call it: three times forward, forward and backward at two sizes, the VAE at two sizes.

    The two sizes are half of the configured one and all of it, at most 16 and 32 rows. Raises what loading raises.
    """
    texts = [prompt.text for prompt in prompts[: config.batch.prompts]]
    adapter = prepare_adapter(config, None, device, texts)
    algorithm = build_algorithm(config, adapter)
    torch.manual_seed(config.run.seed)
    if config.model.tune == "lora":
        add_lora(adapter, config.model.lora.rank, config.model.lora.alpha, config.model.lora.targets)
    else:
        adapter.unwrapped.requires_grad_(True)
    policy = Policy(adapter, algorithm.grid, config.sampler.guidance_scale, algorithm.prediction_scale())
    cond, trained = adapter.encode(texts), algorithm.trained(0)

    def latents(rows: int) -> Tensor:
        return torch.randn(rows, *adapter.latent_shape, device=device)

    def sample(rows: int) -> None:
        index = torch.arange(rows, device=device) % len(texts)
        with torch.no_grad():
            policy(latents(rows), torch.zeros(rows, dtype=torch.long), cond, index)

    def decode(rows: int) -> None:
        adapter.decode(latents(rows))

    def train(rows: int) -> None:
        kept = latents(rows)[:, None].expand(-1, len(trained), *adapter.latent_shape)
        index = torch.arange(rows, device=device) % len(texts)
        run = Trajectory(kept, kept, kept, torch.zeros(rows, len(trained)), trained, kept[:, 0], index)
        update = Update(
            policy=policy,
            trajectory=run,
            cond=cond,
            advantage=torch.ones(rows, device=device),
            credit=algorithm.credit_of(trained),
            stats=algorithm.stats[trained],
            objective=make_objective(config.objective.name, config.objective.clip_range),
            objective_settings=config.objective,
            penalty=config.kl.model_copy(update={"form": "none"}),
        )
        numbers = torch.arange(rows)
        update.loss(numbers, torch.zeros_like(numbers)).per_step.sum().backward()

    for _, parameter in trainable(adapter.unwrapped):
        parameter.grad = torch.zeros_like(parameter)
    kinds = (sample, decode, train)
    with folding(config, adapter):
        for call in kinds:
            call(1)  # loads and tunes what kernels need, neither timed nor counted as activations
        process = None
        if device.type == "cpu" and (resident := reset_resident_peak()) is not None:
            tensors = [
                *adapter.unwrapped.parameters(),
                *(p for part in adapter.parts().values() for p in part.parameters()),
            ]
            process = resident - sum(tensor.nbytes for tensor in {id(t): t for t in tensors}.values())
        meter = PeakMeter(device)
        found = [
            _two_sizes(meter, call, size)
            for call, size in zip(kinds, (counts.rollout_size, counts.rollout_size, counts.update_size), strict=True)
        ]
    (sampling, decoding, training), memory = zip(*found, strict=True)
    bytes_ = None
    if all(line is not None for line in memory):
        bytes_ = Activations(sampling=memory[0], decoding=memory[1], training=memory[2])
    return Measured(sampling, training, decoding, bytes_, process)


def _two_sizes(meter: PeakMeter, call: Callable[[int], None], size: int) -> tuple[Line, Line | None]:
    """Seconds and bytes of a call as lines through two sizes."""
    large = min(size, 2 * LARGEST)
    small = max(1, large // 2)
    seconds, sizes = [], []
    for rows in (small, large):
        began = time.perf_counter()
        sizes.append(meter.measure(lambda rows=rows: call(rows)))  # type: ignore[misc]
        seconds.append(time.perf_counter() - began)
    time_line = Line.through((small, seconds[0]), (large, seconds[1]))
    if sizes[0] is None or sizes[1] is None:
        return time_line, None
    return time_line, Line.through((small, sizes[0]), (large, sizes[1]))


def reset_resident_peak() -> int | None:
    """Set this process' peak of resident memory back to what it holds now, and return that; None without Linux.

    Memory that the C library has kept from earlier calls goes back first: it would hide what a call needs.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


__all__ = ["Measured", "PeakMeter", "probe"]
