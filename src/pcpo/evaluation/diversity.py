"""How different the pictures of one prompt are, and how many different pictures there are in all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-10


def pairwise_distance(features: Tensor) -> Tensor:
    """Cosine distance 1 - cos of every pair of features [G, d], in [0, 2]: [G (G - 1) / 2] float64."""
    unit = F.normalize(features.double(), dim=1)
    rows, columns = _pairs(len(unit), unit.device)
    return 0.5 * (unit[rows] - unit[columns]).square().sum(1)


def perceptual_distance(stages: Sequence[Tensor]) -> Tensor:
    """Perceptual distance of every pair of G pictures, in [0, 4]: [G (G - 1) / 2] float64.

    As LPIPS (1801.03924) without its learned weights: channels are normalised to length 1 at every place, squared
    differences are summed over channels and averaged over places and over stages. stages: each [G, L, C].
    """
    total = torch.zeros(())
    for stage in stages:
        unit = stage.double()
        unit = (unit / (unit.norm(dim=-1, keepdim=True) + EPS)).flatten(1)
        gram = unit @ unit.T / stage.shape[1]  # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b, without a tensor of pairs
        rows, columns = _pairs(len(unit), unit.device)
        total = total + (gram[rows, rows] + gram[columns, columns] - 2 * gram[rows, columns]).clamp_min(0)
    return total / len(stages)


def vendi_score(features: Tensor) -> float:
    """Effective number of different pictures among features [N, d] (2210.02410), from 1 (all alike) to N.

    exp of the entropy of the eigenvalues of K / N, K the cosines. K / N and F^T F / N have the same eigenvalues, so
    the smaller of the two is used.
    """
    unit = F.normalize(features.double(), dim=1) / len(features) ** 0.5
    values = torch.linalg.svdvals(unit).square()
    return float(torch.special.entr(values).sum().exp())


def _pairs(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(size, size, offset=1, device=device)
    return rows, columns


__all__ = ["pairwise_distance", "perceptual_distance", "vendi_score"]
