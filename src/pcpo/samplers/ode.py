"""The deterministic step: Euler's for flow, DDIM's with eta 0 for diffusion."""

from __future__ import annotations

import torch

from pcpo.samplers.coefficients import Coefficients, flow_times
from pcpo.samplers.ddim import ddim
from pcpo.types import Grid


def ode(grid: Grid) -> Coefficients:
    """flow: mean = x - dt v; diffusion: DDIM (2010.02502 eq. 12 with sigma 0). std is 0."""
    if grid.kind == "diffusion":
        return ddim(grid, eta=0.0)
    _, _, dt = flow_times(grid)
    return Coefficients(torch.ones_like(dt), dt, torch.zeros_like(dt))
