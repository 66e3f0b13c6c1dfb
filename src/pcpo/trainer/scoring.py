"""Rewards of a process's share of the pictures, and of all processes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pcpo.rewards.base import evaluate
from pcpo.trainer.collect import Request
from pcpo.types import Reward, RewardResult


def score(
    reward: Reward, pictures: Tensor, request: Request, rows: slice, name: str = "reward"
) -> dict[str, Any] | None:
    """Score some pictures [n, 3, H, W] of a request: a record for `joined`; None where there are none to score."""
    if not len(pictures):
        return None
    result = evaluate(reward, pictures, request.texts[rows], request.metadata(rows), name=name)
    info = {part: values.tolist() for part, values in result.info.items()}
    return {"values": result.values.tolist(), "valid": result.valid.tolist(), "info": info}


def joined(records: Sequence[Mapping[str, Any] | None]) -> RewardResult:
    """The result [B] of all pictures, from the records of their parts in order: the same bits."""
    parts = [record for record in records if record is not None]
    names = [name for name in parts[0]["info"] if all(name in part["info"] for part in parts)]
    return RewardResult(
        _row([part["values"] for part in parts]),
        _row([part["valid"] for part in parts]).bool(),
        {name: _row([part["info"][name] for part in parts]) for name in names},
    )


def _row(parts: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for part in parts for value in part], dtype=torch.float32)


__all__ = ["joined", "score"]
