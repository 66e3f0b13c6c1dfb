"""One Gaussian step, shared by every sampler: sample it, score it, compare it.

A sampler is affine in the state and the prediction, so a rule only gives three numbers per step
(`Coefficients`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pcpo.errors import ConfigError
from pcpo.samplers.coefficients import Coefficients
from pcpo.samplers.ode import ode
from pcpo.types import Grid, StepOutput, StepStats


@dataclass(frozen=True)
class Sampler:
    """A step rule under its name.

    rule            Grid -> Coefficients [T]; a pure function with its parameters bound
    borrows_at_one  the rule has no value at t = 1 and takes one from the next grid point
    """

    name: str
    rule: Callable[[Grid], Coefficients]
    borrows_at_one: bool = False

    def stats(self, grid: Grid) -> StepStats:
        """Coefficients of all T steps of `grid`. Raises ConfigError if the grid is of another kind."""
        return self.stats_with(grid, torch.ones(grid.num_steps, dtype=torch.bool))

    def stats_with(self, grid: Grid, stochastic: Tensor) -> StepStats:
        """The same, with the deterministic step (std 0) wherever `stochastic` [T] bool is False."""
        if stochastic.shape != (grid.num_steps,):
            raise ConfigError(
                f"{len(stochastic)} stochastic flags for {grid.num_steps} steps", where=f"sampler {self.name}"
            )
        t, dt = grid.times[:-1], grid.times[:-1] - grid.times[1:]
        own, still = self.rule(grid), ode(grid)
        x_coef, pred_coef, std = (torch.where(stochastic, a, b) for a, b in zip(own, still, strict=True))
        bad = ~(torch.isfinite(x_coef) & torch.isfinite(pred_coef) & torch.isfinite(std))
        if bad.any():
            raise ConfigError(
                f"no finite coefficients at step {int(bad.nonzero()[0])} of the grid",
                where=f"sampler {self.name}",
                fix="check the sampler's parameter and the scheduler's noise schedule",
            )
        borrowed = (t == 1) & stochastic & self.borrows_at_one
        return StepStats(torch.arange(len(t)), t, dt, std, pred_coef, x_coef, borrowed)

    def step(
        self,
        pred: Tensor,
        x_t: Tensor,
        i: int | Tensor,
        stats: StepStats,
        *,
        noise: Tensor | None = None,
        x_next: Tensor | None = None,
        reduce: str = "mean",
    ) -> StepOutput:
        """One step x_t -> x_next, drawn from `noise` or scored at a given `x_next`, by the same code.

        pred, x_t, noise, x_next [N, ...]; i: step index into `stats`, one or a LongTensor [N]. The arithmetic
        is in the dtype of x_t. Raises ValueError unless exactly one of noise and x_next is given.
        """
        rows = torch.as_tensor(i, device=x_t.device).expand(len(x_t))
        x_coef, pred_coef, std = (
            c.to(x_t.dtype).to(x_t.device)[rows] for c in (stats.x_coef, stats.pred_coef, stats.std)
        )
        mean = per_row(x_coef, x_t) * x_t - per_row(pred_coef, x_t) * pred.to(x_t.dtype)
        if noise is not None and x_next is None:
            x_next = mean + per_row(std, x_t) * noise
        elif noise is not None or x_next is None:
            raise ValueError("give exactly one of noise (to sample) and x_next (to score)")
        return StepOutput(x_next, gaussian_log_prob(x_next, mean, std, reduce), mean, std, pred_coef)


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor, reduce: str = "mean") -> Tensor:
    """log N(x; mean, std^2) reduced over latent axes, [N]; nan where std is 0. x, mean [N, ...], std [N]."""
    # a positive stand-in keeps the gradient of the other rows finite
    safe = torch.where(std > 0, std, torch.ones_like(std))
    z = (x - mean) / per_row(safe, x)
    log_prob = reduce_latent(-0.5 * z**2 - per_row(safe.log(), x) - 0.5 * math.log(2 * math.pi), reduce)
    return torch.where(std > 0, log_prob, torch.full_like(log_prob, math.nan))


def gaussian_kl(mean_p: Tensor, mean_q: Tensor, std: Tensor, reduce: str = "mean") -> Tensor:
    """KL(p || q) = |mean_p - mean_q|^2 / (2 std^2) of two steps with the same std [N] > 0; [N]."""
    return reduce_latent((mean_p - mean_q) ** 2, reduce) / (2 * std**2)


def reduce_latent(x: Tensor, how: str) -> Tensor:
    """[N, ...] -> [N]: "mean" over D, as codes of this field do, or "sum", the exact density."""
    flat = x.reshape(len(x), -1)
    if how == "mean":
        return flat.mean(1)
    if how == "sum":
        return flat.sum(1)
    raise ConfigError(f"unknown reduction '{how}'", where="reduce", fix="use mean or sum")


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N, 1, ...] in the dtype and on the device of `like` [N, ...], for broadcasting."""
    return values.to(like.dtype).to(like.device).reshape(-1, *[1] * (like.ndim - 1))
