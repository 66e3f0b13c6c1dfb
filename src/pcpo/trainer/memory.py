"""What is done when memory runs out: fewer rows a model call, then gradient checkpointing; the same result, slower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from pcpo.errors import MemoryLimitError, one_line
from pcpo.trainer.config import Config

Result = TypeVar("Result")
HALVINGS = 3
LESS = "or need less: run.precision=bf16, run.offload=cpu, a smaller model.resolution"
ADVICE = {
    "rollout": f"set a smaller batch.rollout, {LESS}",
    "decode": f"set run.vae_slicing=true or run.vae_tiling=true, {LESS}",
    "micro": f"set model.gradient_checkpointing=true (or auto) or a smaller batch.micro, {LESS}",
}
UNITS = {"rollout": "pictures a call", "decode": "pictures a decoding", "micro": "(picture, step) pairs a call"}


class CallSizes:
    """How many rows a model call has, by kind: "rollout" and "decode" pictures, "micro" (picture, step) pairs.

    They start as configured, or with all `pictures` of this process, and are halved at most `limit` times each; the
    run keeps what it has come to. After that an update may still turn gradient checkpointing on, by `checkpoint`(True),
    where the configuration says auto: last, for a halving or two cost less time and save as much.
    """

    def __init__(
        self,
        config: Config,
        pictures: int | None = None,
        limit: int = HALVINGS,
        checkpoint: Callable[[bool], object] | None = None,
    ) -> None:
        self.limit = limit
        self._checkpoint = checkpoint if config.model.gradient_checkpointing == "auto" else None
        self.checkpointing = False
        rollout = config.batch.rollout or pictures or config.pictures
        self.configured = {"rollout": rollout, "decode": rollout, "micro": config.batch.micro or rollout}
        self.halvings = dict.fromkeys(self.configured, 0)

    def __getitem__(self, kind: str) -> int:
        return max(1, self.configured[kind] >> self.halvings[kind])

    def attempt(self, kind: str, work: Callable[[int], Result], warn: Callable[[str], object]) -> Result:
        """work(size), again from its beginning with half the size whenever there is no memory left.

        Raises MemoryLimitError, with advice, after 3 halvings or when a single row does not fit, and checkpointing
        does not help either.
        """
        while True:
            size = self[kind]
            try:
                return work(size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = one_line(error)
            # out of the handler: the error's frames, which hold tensors, are gone
            change = self._need_less(kind, reason)
            release()
            warn(f"out of memory with {size} {UNITS[kind]}: {change}")

    def _need_less(self, kind: str, reason: str) -> str:
        """Halve, or turn checkpointing on; returns words that say so. Raises MemoryLimitError where neither is left."""
        if self[kind] > 1 and self.halvings[kind] < self.limit:
            self.halvings[kind] += 1
            count = f"halving {self.halvings[kind]} of at most {self.limit}"
            return f"{self[kind]} from now on, with the same result ({count})"
        if kind == "micro" and self._checkpoint is not None and not self.checkpointing:
            self._set_checkpointing(True)
            return "gradient checkpointing from now on, with the same result (nothing is left to halve)"
        tried = (
            f"{self.halvings[kind]} halvings{' and gradient checkpointing' * (kind == 'micro' and self.checkpointing)}"
        )
        raise MemoryLimitError(
            f"out of memory with {self[kind]} {UNITS[kind]}, after {tried} ({reason})", where=kind, fix=ADVICE[kind]
        )

    def _set_checkpointing(self, on: bool) -> None:
        if self._checkpoint is not None and on != self.checkpointing:
            self._checkpoint(on)
            self.checkpointing = on

    def state_dict(self) -> dict[str, Any]:
        """Kind -> [configured size, halvings], and whether checkpointing was turned on, ready for JSON."""
        sizes = {kind: [self.configured[kind], count] for kind, count in self.halvings.items()}
        return sizes | {"gradient_checkpointing": self.checkpointing}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the halvings of sizes that are configured as they were; a size configured anew counts as it is."""
        for kind, now in self.configured.items():
            before, count = state[kind]
            self.halvings[kind] = int(count) if before == now else 0
        self._set_checkpointing(bool(state.get("gradient_checkpointing", False)))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an accelerator, or the CPU's allocator, had no memory left."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def release() -> None:
    """Give the memory of what has gone back to the device."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


__all__ = ["CallSizes", "is_out_of_memory"]
