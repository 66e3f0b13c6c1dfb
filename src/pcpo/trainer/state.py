"""What changes during a run and must survive a restart: weights, optimiser, EMA, counters, running statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from pcpo.credit.adaptive import AdaptiveCredit
from pcpo.errors import CheckpointError
from pcpo.trainer import checkpoint
from pcpo.trainer.advantage import Advantages
from pcpo.trainer.config import OptimSettings
from pcpo.trainer.optimizer import make_optimizer


class TrainState:
    """Trained parameters with their AdamW, optional EMA, and counters."""

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        settings: OptimSettings,
        advantages: Advantages,
        adaptive: AdaptiveCredit | None = None,
        *,
        loss_scaling: bool = False,
    ) -> None:
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.advantages, self.adaptive = advantages, adaptive
        self.iteration = 0
        self.samples = 0
        self.optimizer = make_optimizer(self.parameters, settings)
        # fp16 gradients of these losses, about 1e-7 an element, would be rounded to zero
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=loss_scaling)
        self.ema = None
        if settings.ema_decay is not None:
            from diffusers.training_utils import EMAModel

            self.ema = EMAModel(self.parameters, decay=settings.ema_decay)

    def step(self) -> None:
        """Apply the accumulated gradients."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.parameters)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the EMA weights (where an EMA is kept)."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def save(self, parent: Path) -> Path:
        """Write a checkpoint named by the iteration."""
        tensors: dict[str, Tensor] = {f"weight.{name}": p for name, p in zip(self.names, self.parameters, strict=True)}
        tensors |= checkpoint.optimizer_tensors(self.optimizer)
        state: dict[str, object] = {"iteration": self.iteration, "samples": self.samples}
        if self.ema is not None:
            shadow = zip(self.names, self.ema.shadow_params, strict=True)
            tensors |= {f"ema.{name}": p for name, p in shadow}
            state["ema_step"] = self.ema.optimization_step
        running = self.advantages.state_dict()
        if running is not None:
            state["running"] = running
        if self.adaptive is not None:
            state["adaptive"] = self.adaptive.state_dict()
        return checkpoint.save(self.path(parent), tensors, state)

    def path(self, parent: Path) -> Path:
        """Where the checkpoint of this iteration is or would be."""
        return parent / f"{self.iteration:06d}"

    def load_newest(self, parent: Path) -> None:
        """Restore the newest checkpoint; without one the run starts over."""
        found = checkpoint.list_checkpoints(parent)
        if not found:
            return
        tensors, state = checkpoint.load(found[-1])
        try:
            with torch.no_grad():
                for name, parameter in zip(self.names, self.parameters, strict=True):
                    parameter.copy_(tensors[f"weight.{name}"])
                checkpoint.restore_optimizer(self.optimizer, tensors)
                if self.ema is not None:
                    for name, shadow in zip(self.names, self.ema.shadow_params, strict=True):
                        shadow.copy_(tensors[f"ema.{name}"])
                    self.ema.optimization_step = state["ema_step"]
            if self.advantages.state_dict() is not None:
                self.advantages.load_state_dict(state["running"])
            if self.adaptive is not None:
                self.adaptive.load_state_dict(state["adaptive"])
            self.iteration, self.samples = state["iteration"], state["samples"]
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"does not fit this configuration: {error}", where=str(found[-1])) from error
