"""Distances between two sets of feature vectors: Frechet and kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from pcpo.errors import EvaluationError

ROUNDING = 1e-13  # of the terms in float64: a difference below it is none


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance of Gaussians fitted to x [N, d] and y [M, d] (1706.08500, there with Inception).

    |mu_x - mu_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x S_y)^(1/2)),  covariances with N - 1

    With S = R^T R the last trace is the sum of the singular values of R_x R_y^T: no matrix root is taken and no
    eigenvalue has to be clipped, and it is exact also where there are fewer pictures than dimensions. There the
    *estimate* is biased upwards (by about 1/N): compare only sets of equal size, and see `kernel_distance`.

    Raises EvaluationError for fewer than two vectors or different dimensions.
    """
    x, y = _checked(x, y)
    cross = torch.linalg.svdvals(_root(x) @ _root(y).T).sum()
    terms = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum()
    distance = float(terms - 2 * cross)
    return distance if distance > ROUNDING * float(terms) else 0.0


def kernel_distance(x: Tensor, y: Tensor, *, scale: float | None = None) -> float:
    """Unbiased estimate of the squared kernel distance, KID (1801.01401), of x [N, d] and y [M, d].

    MMD^2 with k(a, b) = (scale a.b + 1)^3; scale None is KID's 1 / d, 1 suits unit vectors. Unbiased at any N,
    so it may be slightly negative. Sets of equal size are taken as paired (row i of both from the same noise):
    the dependent terms k(x_i, y_i) are left out, and two identical sets give exactly 0.

    Raises EvaluationError for fewer than two vectors or different dimensions.
    """
    x, y = _checked(x, y)
    factor = 1 / x.shape[1] if scale is None else scale

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (factor * a @ b.T + 1) ** 3

    within = _mean_off_diagonal(kernel(x, x)) + _mean_off_diagonal(kernel(y, y))
    cross = kernel(x, y)
    between = _mean_off_diagonal(cross) if len(x) == len(y) else cross.mean()
    return float(within - 2 * between)


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise EvaluationError(
            f"vectors {tuple(x.shape)} and {tuple(y.shape)} cannot be compared",
            where="distance between sets",
            fix="use one feature set for both",
        )
    if min(len(x), len(y)) < 2:
        raise EvaluationError("a set of one picture has no spread", where="distance between sets", fix="give more")
    return x.double(), y.double()


def _root(x: Tensor) -> Tensor:
    """R [min(N, d), d] with R^T R the covariance of x [N, d]."""
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R


def _mean_off_diagonal(k: Tensor) -> Tensor:
    size = len(k)
    return (k.sum() - k.diagonal().sum()) / (size * (size - 1))


__all__ = ["frechet_distance", "kernel_distance"]
