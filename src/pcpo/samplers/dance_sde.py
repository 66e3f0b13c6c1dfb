"""The SDE of DanceGRPO (2505.07818)."""

from __future__ import annotations

import torch

from pcpo.samplers.coefficients import Coefficients, flow_times
from pcpo.types import Grid


def dance_sde(grid: Grid, eta: float) -> Coefficients:
    """mean = x - dt v - 1/2 eta^2 dt (x + (1-t) v) / t, s = eta sqrt(dt): a constant noise rate."""
    t, _, dt = flow_times(grid)
    return Coefficients(
        x_coef=1 - eta**2 * dt / (2 * t),
        pred_coef=dt * (1 + eta**2 * (1 - t) / (2 * t)),
        std=eta * torch.sqrt(dt),
    )
