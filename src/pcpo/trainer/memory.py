"""Rows of a model call, halved when memory runs out: the same pictures and the same gradient, in more calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from pcpo.errors import MemoryLimitError, one_line
from pcpo.trainer.config import Config

Result = TypeVar("Result")
HALVINGS = 3
LESS = "or need less: run.precision=bf16, run.offload=cpu, a smaller model.resolution"
ADVICE = {
    "rollout": f"set a smaller batch.rollout, {LESS}",
    "decode": f"set run.vae_slicing=true or run.vae_tiling=true, {LESS}",
    "micro": f"set model.gradient_checkpointing=true or a smaller batch.micro, {LESS}",
}
UNITS = {"rollout": "pictures a call", "decode": "pictures a decoding", "micro": "(picture, step) pairs a call"}


class CallSizes:
    """How many rows a model call has, by kind: "rollout" and "decode" pictures, "micro" (picture, step) pairs.

    They start as configured, or with all `pictures` of this process, and are halved at most `limit` times each; the
    run keeps what it has come to.
    """

    def __init__(self, config: Config, pictures: int | None = None, limit: int = HALVINGS) -> None:
        self.limit = limit
        rollout = config.batch.rollout or pictures or config.pictures
        self.configured = {"rollout": rollout, "decode": rollout, "micro": config.batch.micro or rollout}
        self.halvings = dict.fromkeys(self.configured, 0)

    def __getitem__(self, kind: str) -> int:
        return max(1, self.configured[kind] >> self.halvings[kind])

    def attempt(self, kind: str, work: Callable[[int], Result], warn: Callable[[str], object]) -> Result:
        """work(size), again from its beginning with half the size whenever there is no memory left.

        Raises MemoryLimitError, with advice, after 3 halvings or when a single row does not fit.
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
            self._halve(kind, reason)
            release()
            warn(
                f"out of memory with {size} {UNITS[kind]}: {self[kind]} from now on, with the same result "
                f"(halving {self.halvings[kind]} of at most {self.limit})"
            )

    def _halve(self, kind: str, reason: str) -> None:
        if self[kind] == 1 or self.halvings[kind] == self.limit:
            raise MemoryLimitError(
                f"out of memory with {self[kind]} {UNITS[kind]}, after {self.halvings[kind]} halvings ({reason})",
                where=kind,
                fix=ADVICE[kind],
            )
        self.halvings[kind] += 1

    def state_dict(self) -> dict[str, list[int]]:
        """Kind -> [configured size, halvings], ready for JSON."""
        return {kind: [self.configured[kind], count] for kind, count in self.halvings.items()}

    def load_state_dict(self, state: Mapping[str, list[int]]) -> None:
        """Take over the halvings of sizes that are configured as they were; a size configured anew counts as it is."""
        for kind, now in self.configured.items():
            before, count = state[kind]
            self.halvings[kind] = int(count) if before == now else 0


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an accelerator, or the CPU's allocator, had no memory left."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def release() -> None:
    """Give the memory of what has gone back to the device."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


__all__ = ["CallSizes", "is_out_of_memory"]
