"""What changes during a run and must survive a restart: weights, optimiser, EMA, counters, running statistics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pcpo.credit.adaptive import AdaptiveCredit
from pcpo.errors import CheckpointError, one_line
from pcpo.trainer import checkpoint
from pcpo.trainer.advantage import Advantages
from pcpo.trainer.checkpoint import Snapshot
from pcpo.trainer.config import OptimSettings
from pcpo.trainer.memory import CallSizes
from pcpo.trainer.optimizer import make_optimizer
from pcpo.trainer.random_state import RandomState
from pcpo.trainer.zero import ZeroAdamW


@dataclass(frozen=True)
class Mark:
    """The state at the border of two iterations; `tensors` only where they were copied."""

    tensors: dict[str, Tensor] | None
    record: dict[str, Any]
    random: RandomState


class TrainState:
    """Trained parameters with their AdamW, optional EMA, and counters.

    With `zero` the optimiser is split over the processes, and makes the whole step itself.
    """

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        settings: OptimSettings,
        advantages: Advantages,
        sizes: CallSizes,
        adaptive: AdaptiveCredit | None = None,
        *,
        loss_scaling: bool = False,
        zero: ZeroAdamW | None = None,
    ) -> None:
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.advantages, self.adaptive, self.sizes = advantages, adaptive, sizes
        self.iteration = 0
        self.samples = 0
        self.zero = zero
        self.optimizer = make_optimizer(self.parameters, settings)  # idle beside `zero`
        # fp16 gradients of these losses, about 1e-7 an element, would be rounded to zero
        self._loss_scaling = loss_scaling
        self.scaler = self._new_scaler()
        self.ema = None
        if settings.ema_decay is not None:
            from diffusers.training_utils import EMAModel

            self.ema = EMAModel(self.parameters, decay=settings.ema_decay)
        self.mark()

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.parameters[0].device.type, enabled=self._loss_scaling)

    def zero_grad(self) -> None:
        """Forget the accumulated gradients."""
        (self.zero or self.optimizer).zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a loss."""
        if self.zero is None:
            self.scaler.scale(loss).backward()
        else:
            self.zero.backward(loss)

    def step(self) -> None:
        """Apply the accumulated gradients, which are finite."""
        self._changed = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.zero_grad()
        self._average()

    def step_split(self, zero: ZeroAdamW) -> float:
        """The same of a split optimiser, clipped; returns the norm. Nothing is changed where that is not finite."""
        norm = zero.step()
        if math.isfinite(norm):
            self._changed = True
            self._average()
        return norm

    def _average(self) -> None:
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

    def tensors(self, *, whole: bool = False) -> dict[str, Tensor]:
        """Everything that is a tensor, by name; not copied.

        Of a split optimiser this process's part or, `whole`, all of it: then all processes must ask, and one gets it.
        """
        tensors: dict[str, Tensor] = {f"weight.{name}": p for name, p in zip(self.names, self.parameters, strict=True)}
        if self.zero is None:
            tensors |= checkpoint.optimizer_tensors(self.optimizer)
        else:
            tensors |= self.zero.whole() if whole else self.zero.part()
        if self.ema is not None:
            tensors |= {f"ema.{name}": p for name, p in zip(self.names, self.ema.shadow_params, strict=True)}
        return tensors

    def record(self) -> dict[str, Any]:
        """Everything that is not, ready for JSON."""
        record: dict[str, Any] = {
            "iteration": self.iteration,
            "samples": self.samples,
            "call_sizes": self.sizes.state_dict(),
        }
        if self.ema is not None:
            record["ema_step"] = self.ema.optimization_step
        if self._loss_scaling:
            record["scaler"] = self.scaler.state_dict()
        running = self.advantages.state_dict()
        if running is not None:
            record["running"] = running
        if self.adaptive is not None:
            record["adaptive"] = self.adaptive.state_dict()
        return record

    def load(self, tensors: dict[str, Tensor], record: Mapping[str, Any]) -> None:
        """Put back what `tensors` and `record` gave. Raises KeyError or RuntimeError for what does not fit."""
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters, strict=True):
                parameter.copy_(tensors[f"weight.{name}"])
            if self.zero is None:
                checkpoint.restore_optimizer(self.optimizer, tensors)
            else:
                self.zero.load(tensors)
            if self.ema is not None:
                for name, shadow in zip(self.names, self.ema.shadow_params, strict=True):
                    shadow.copy_(tensors[f"ema.{name}"])
        self._load_record(record)

    def _load_record(self, record: Mapping[str, Any]) -> None:
        if self.ema is not None:
            self.ema.optimization_step = record["ema_step"]
        if self._loss_scaling:
            self.scaler = self._new_scaler()  # one that was stopped between unscaling and step would refuse the next
            self.scaler.load_state_dict(record["scaler"])
        if self.advantages.state_dict() is not None:
            self.advantages.load_state_dict(record["running"])
        if self.adaptive is not None:
            self.adaptive.load_state_dict(record["adaptive"])
        self.sizes.load_state_dict(record["call_sizes"])
        self.iteration, self.samples = record["iteration"], record["samples"]

    # The border of two iterations, to which a run that is stopped in the middle of one goes back

    def mark(self, copy: bool = False) -> None:
        """Remember this moment. With `copy`, the tensors too: needed when an iteration makes several updates."""
        tensors = {name: value.detach().cpu().clone() for name, value in self.tensors().items()} if copy else None
        self._mark = Mark(tensors, self.record(), RandomState.capture())
        self._changed = False

    @property
    def finished(self) -> int:
        """Iterations that were done at the mark."""
        return int(self._mark.record["iteration"])

    def roll_back(self) -> bool:
        """Go back to the mark; False when that cannot be done, for weights have changed and were not copied."""
        mark = self._mark
        if self._changed and mark.tensors is None:
            return False
        self.zero_grad()
        if self._changed and mark.tensors is not None:
            self.load({name: value.clone() for name, value in mark.tensors.items()}, mark.record)
        else:
            self._load_record(mark.record)
        mark.random.restore()
        self._changed = False
        return True

    def snapshot(self, config: Mapping[str, Any]) -> Snapshot:
        """What a checkpoint holds, in the main process; all must ask. Not copied: save it before the next step."""
        return Snapshot(self.iteration, self.tensors(whole=True), self.record(), RandomState.capture(), dict(config))

    def restore(self, snapshot: Snapshot) -> None:
        """Take over a checkpoint. Raises CheckpointError when it is of another configuration."""
        try:
            self.load(snapshot.tensors, snapshot.record)
            snapshot.random.restore()
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"does not fit this configuration: {one_line(error)}", where=f"checkpoint {snapshot.iteration:06d}"
            ) from error
