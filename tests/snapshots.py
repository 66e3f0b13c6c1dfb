"""Small snapshots for tests of checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from pcpo.trainer import checkpoint, protocol
from pcpo.trainer.checkpoint import Snapshot
from pcpo.trainer.random_state import RandomState


def snapshot(iteration: int, size: int = 7) -> Snapshot:
    """Every group of tensors, with values that tell the iteration."""
    names = ("weight.a", "optimizer.0.exp_avg", "ema.a")
    tensors = {name: torch.full((size,), iteration + place / 8) for place, name in enumerate(names)}
    return Snapshot(iteration, tensors, {"iteration": iteration}, RandomState.capture(), {"run": {"seed": iteration}})


def save(parent: Path, iteration: int, keep: int) -> None:
    """Save, then retire."""
    checkpoint.save(parent, snapshot(iteration))
    protocol.retire(parent, keep)


def is_right(found: Snapshot, size: int = 7) -> bool:
    """Whether a loaded snapshot is the one of its iteration."""
    expected = snapshot(found.iteration, size)
    return found.record == expected.record and all(
        torch.equal(found.tensors[name], value) for name, value in expected.tensors.items()
    )
