"""What a step rule returns, and how it reads a grid."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pcpo.errors import ConfigError
from pcpo.types import Grid


class Coefficients(NamedTuple):
    """x_next = x_coef * x_t - pred_coef * prediction + std * noise; every field [T] float64."""

    x_coef: Tensor
    pred_coef: Tensor
    std: Tensor


def flow_times(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """t, u, dt = t - u of every step t -> u, each [T]. Raises ConfigError on a diffusion grid."""
    if grid.kind != "flow":
        raise ConfigError(
            f"a flow sampler was given a {grid.kind} grid",
            where="sampler",
            fix="use ddim or ode with this model",
        )
    t, u = grid.times[:-1], grid.times[1:]
    return t, u, t - u


def diffusion_alphas(grid: Grid) -> tuple[Tensor, Tensor]:
    """alpha_bar at the start (ab_t) and end (ab_p) of each step, [T]. Raises ConfigError on a flow grid."""
    if grid.alpha_bar is None:
        raise ConfigError(
            f"a diffusion sampler was given a {grid.kind} grid",
            where="sampler",
            fix="use flow_sde, dance_sde, cps, precise or ode with this model",
        )
    return grid.alpha_bar[:-1], grid.alpha_bar[1:]
