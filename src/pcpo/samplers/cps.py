"""Coefficients-preserving sampling, Flow-CPS (2509.05952)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pcpo.samplers.coefficients import Coefficients, flow_times
from pcpo.types import Grid


def cps(grid: Grid, noise_level: float) -> Coefficients:
    """mean = (1-u) x0hat + sqrt(u^2 - s^2) epshat, s = u sin(a pi / 2), a = noise_level in [0, 1]."""
    t, u, _ = flow_times(grid)
    return preserving(t, u, u * math.sin(noise_level * math.pi / 2))


def preserving(t: Tensor, u: Tensor, std: Tensor) -> Coefficients:
    """The step that puts std of the noise level u into fresh noise and the rest into epshat; all [T].

    x0hat = x - t v and epshat = x + (1-t) v give k = t (1-u) - (1-t) sqrt(u^2 - s^2) >= t - u, never
    negative.
    """
    kept = torch.sqrt((u**2 - std**2).clamp(min=0))
    return Coefficients((1 - u) + kept, t * (1 - u) - (1 - t) * kept, std)
