"""The SDE of Flow-GRPO (2505.05470)."""

from __future__ import annotations

import torch

from pcpo.samplers.coefficients import Coefficients, flow_times
from pcpo.types import Grid


def flow_sde(grid: Grid, noise_level: float) -> Coefficients:
    """mean = x (1 - g^2 / (2t) dt) - v (1 + g^2 (1-t) / (2t)) dt, s = g sqrt(dt), g = a sqrt(t / (1-t)).

    a = noise_level. At t = 1 g is infinite: there its denominator is taken at the next grid point, so that
    step's coefficients are borrowed, not the SDE's own.
    """
    t, u, dt = flow_times(grid)
    g2 = noise_level**2 * t / (1 - torch.where(t == 1, u, t))
    return Coefficients(
        x_coef=1 - g2 / (2 * t) * dt,
        pred_coef=(1 + g2 * (1 - t) / (2 * t)) * dt,
        std=torch.sqrt(g2 * dt),
    )
