"""The step that is exact for Gaussian noise levels, with a power of its decay (2605.23522)."""

from __future__ import annotations

import torch

from pcpo.samplers.coefficients import Coefficients, flow_times
from pcpo.samplers.cps import preserving
from pcpo.types import Grid


def precise(grid: Grid, eta: float) -> Coefficients:
    """mean as in cps, s = u sqrt(1 - r^(eta^2)), r = u (1-t) / (t (1-u)).

    r is the ratio of the noise-to-signal ratios of u and t: 0 at t = 1 or u = 0, near 1 for a short step.
    """
    t, u, _ = flow_times(grid)
    r = u * (1 - t) / (t * (1 - u))
    return preserving(t, u, u * torch.sqrt(1 - r ** (eta**2)))
