"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pcpo.errors import RewardError
from pcpo.rewards.base import evaluate, ready
from pcpo.types import Reward, RewardResult


class WeightedSum:
    """sum_k weight_k reward_k of raw values, over parts (name, reward, weight) with distinct names.

    A picture is valid when no part abstains on it. info holds each part's raw values under its name, and
    the part's own info under "name/key"; where a part abstains its entry is 0, so average over valid
    pictures only. A weight of 0 reports a part without using its value.
    """

    def __init__(self, parts: Sequence[tuple[str, Reward, float]]) -> None:
        if not parts:
            raise RewardError("no reward given", where="weighted sum", fix="name at least one")
        names = [name for name, _, _ in parts]
        for name, _, weight in parts:
            if not math.isfinite(weight):
                raise RewardError(f"weight {weight}", where=f"reward {name!r}", fix="use a finite weight")
            if names.count(name) > 1:
                raise RewardError("name used twice", where=f"reward {name!r}", fix="give each part its own name")
        self.parts = list(parts)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each part by name."""
        return {name: weight for name, _, weight in self.parts}

    def ready(self) -> None:
        """Let every part that can say so say whether it could score now; RewardError if one cannot."""
        for _, reward, _ in self.parts:
            ready(reward)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> RewardResult:
        """Evaluate every part; RewardError names the part that fails."""
        total = torch.zeros(len(images))
        valid = torch.ones(len(images), dtype=torch.bool)
        info: dict[str, Tensor] = {}
        for name, reward, weight in self.parts:
            result = evaluate(reward, images, prompts, metadata, name=name)
            total += weight * result.values
            valid &= result.valid
            info[name] = result.values
            info.update({f"{name}/{key}": part for key, part in result.info.items()})
        return RewardResult(total, valid, info)


__all__ = ["WeightedSum"]
