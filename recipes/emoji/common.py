"""What every training script shares: arguments, exact resume, moving average, safetensors checkpoints."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SEED = 20259


def parse_arguments(description: str | None, steps: int, threads: int = 1) -> argparse.Namespace:
    """Read ``--work --steps --threads --seed``; sets the number of torch threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/pcpo/emoji", help="cache folder")
    parser.add_argument("--steps", type=int, default=steps, help="optimiser steps in all")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step depend on (seed, step) only: a resumed run repeats an unbroken one."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def warm_cosine(step: int, steps: int, warm_up: int = 200, floor: float = 0.01) -> float:
    """Learning-rate factor: linear warm-up, then cosine from 1 to ``floor``."""
    if step < warm_up:
        return (step + 1) / warm_up
    progress = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of a batch [N, C, H, W] left to right."""
    flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, x.flip(-1), x)


class Training:
    """Optimiser, moving average, learning-rate schedule and checkpoints of one model.

    The checkpoint is one safetensors file (weights, average, AdamW moments) with the step count and the
    seconds spent in its metadata; it is written to a temporary name first, so that a kill leaves the
    previous one whole.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        arguments: argparse.Namespace,
        optimiser: torch.optim.Optimizer,
        ema_decay: float = 0.999,
        warm_up: int = 200,
    ) -> None:
        self.model, self.optimiser, self.ema_decay = model, optimiser, ema_decay
        self.steps, self.seed, self.warm_up = arguments.steps, arguments.seed, warm_up
        self.path = arguments.work / f"{name}.safetensors"
        self.log = arguments.work / f"{name}.jsonl"
        self.step, self.seconds = 0, 0.0
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.params = dict(model.named_parameters())
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        tensors = load_file(self.path)
        part = {kind: {} for kind in ("model", "ema", "exp_avg", "exp_avg_sq", "momentum_buffer")}  # type: dict[str, dict[str, Tensor]]
        for key, value in tensors.items():
            if key != "meta":
                kind, name = key.split("/", 1)
                part[kind][name] = value
        self.model.load_state_dict(part["model"])
        self.ema = part["ema"]
        self.step, self.seconds = int(tensors["meta"][0]), float(tensors["meta"][1])
        for name, p in self.params.items():
            state = self.optimiser.state[p]
            for kind in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                if name in part[kind]:
                    state[kind] = part[kind][name]
            if "exp_avg" in state:
                state["step"] = torch.tensor(float(self.step))

    def save(self) -> None:
        """Write the checkpoint atomically."""
        tensors = {"meta": torch.tensor([self.step, self.seconds], dtype=torch.float64)}
        tensors |= {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema/{k}": v for k, v in self.ema.items()}
        for name, p in self.params.items():
            for kind, value in self.optimiser.state.get(p, {}).items():
                if kind != "step":
                    tensors[f"{kind}/{name}"] = value
        partial = self.path.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial)
        partial.replace(self.path)

    def update(self, loss: Tensor, clip: float = 1.0) -> None:
        """One optimiser step and one step of the moving average."""
        factor = warm_cosine(self.step, self.steps, self.warm_up)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params.values(), clip)
        self.optimiser.step()
        # a short memory at first, so that the average forgets the random start
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.ema[key].lerp_(value, 1 - decay)
                else:
                    self.ema[key].copy_(value)

    def run(self, loss_of: Callable[[int, torch.Generator], Tensor], every: int = 250) -> Iterator[int]:
        """Train to the end; yields the step count after every log line and checkpoint."""
        total, start = 0.0, time.monotonic()
        while self.step < self.steps:
            loss = loss_of(self.step, step_generator(self.seed, self.step))
            self.update(loss)
            self.step += 1
            total += float(loss.detach())
            if self.step % every == 0 or self.step == self.steps:
                now = time.monotonic()
                self.seconds += now - start
                count = self.step % every or every
                line = {"step": self.step, "loss": round(total / count, 5), "seconds": round(self.seconds, 1)}
                with self.log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
                print(line, flush=True)
                self.save()
                total, start = 0.0, now
                yield self.step

    def averaged(self) -> nn.Module:
        """Put the moving average into the model (for sampling or export) and return it."""
        self.model.load_state_dict(self.ema)
        return self.model.eval()


def decayed(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: weight decay for matrices and kernels, none for vectors."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
