"""How even the credit is: by the formula, and as measured in the gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def share(x: Tensor) -> Tensor:
    """x [S] >= 0 divided by its sum; all zero if the sum is 0."""
    total = x.sum()
    return x / total if total > 0 else torch.zeros_like(x)


def spread(x: Tensor) -> float:
    """max / min of x [S] >= 0; inf if the smallest is 0."""
    low = float(x.min())
    return float(x.max()) / low if low > 0 else math.inf


def gradient_share(norms: Tensor) -> Tensor:
    """Measured credit share [S] from per-step gradient norms [M, S] or [S], averaged over M first."""
    return share(norms.reshape(-1, norms.shape[-1]).mean(0))
