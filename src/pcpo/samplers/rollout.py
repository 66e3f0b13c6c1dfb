"""Sampling: the loop over the steps of a grid, with or without a record of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pcpo.errors import ConfigError
from pcpo.samplers.base import Sampler
from pcpo.types import StepOutput, StepStats, Trajectory

Predict = Callable[[Tensor, Tensor], Tensor]
NoiseAt = Callable[[int], Tensor]


@torch.no_grad()
def rollout(
    predict: Predict,
    sampler: Sampler,
    stats: StepStats,
    x_T: Tensor,
    noise_at: NoiseAt,
    trained_steps: Tensor,
    *,
    prompt_index: Tensor | None = None,
    reduce: str = "mean",
    on_step: Callable[[int], None] | None = None,
    keep_prediction: bool = True,
) -> Trajectory:
    """Sample B pictures from x_T [B, ...] and keep what the update needs of the trained steps.

    predict(x [B, ...], i [B]) -> prediction [B, ...]; noise_at(step) -> [B, ...], asked for stochastic steps
    only; trained_steps [S] increasing indices into `stats` (all T steps); prompt_index [B] (None: all of one
    prompt); on_step(i) after each step; keep_prediction False leaves prediction_old None. Raises ConfigError if
    a trained step does not exist or draws no noise.
    """
    steps = trained_steps.cpu()
    _check_trained(steps, stats)
    kept = (len(x_T), len(steps), *x_T.shape[1:])
    x_t, noise, log_prob = x_T.new_empty(kept), x_T.new_empty(kept), x_T.new_empty(kept[:2])
    prediction_old = x_T.new_empty(kept) if keep_prediction else None
    slot = {int(step): s for s, step in enumerate(steps)}
    latents = x_T
    for i, x, pred, z, out in _walk(predict, sampler, stats, x_T, noise_at, reduce):
        if i in slot:
            s = slot[i]
            x_t[:, s], noise[:, s], log_prob[:, s] = x, z, out.log_prob
            if prediction_old is not None:
                prediction_old[:, s] = pred
        latents = out.x_next
        if on_step is not None:
            on_step(i)
    if prompt_index is None:
        prompt_index = torch.zeros(len(x_T), dtype=torch.long)
    return Trajectory(x_t, noise, prediction_old, log_prob, steps, latents, prompt_index)


@torch.no_grad()
def sample(
    predict: Predict,
    sampler: Sampler,
    stats: StepStats,
    x_T: Tensor,
    noise_at: NoiseAt | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Final latents [B, ...] from x_T [B, ...], as `rollout` but with no record.

    noise_at may be left out if no step is stochastic (ConfigError otherwise).
    """
    if noise_at is None and (stats.std > 0).any():
        raise ConfigError("the sampler is stochastic but no noise was given", where=f"sampler {sampler.name}")
    latents = x_T
    for i, _, _, _, out in _walk(predict, sampler, stats, x_T, noise_at, "mean"):
        latents = out.x_next
        if on_step is not None:
            on_step(i)
    return latents


def _walk(
    predict: Predict, sampler: Sampler, stats: StepStats, x: Tensor, noise_at: NoiseAt | None, reduce: str
) -> Iterator[tuple[int, Tensor, Tensor, Tensor, StepOutput]]:
    """Every step in turn: index, state before it, prediction, noise, output."""
    still = x.new_zeros(()).expand_as(x)
    for i in range(len(stats)):
        pred = predict(x, torch.full((len(x),), i, device=x.device)).to(x.dtype)
        stochastic = noise_at is not None and bool(stats.std[i] > 0)
        noise = noise_at(i).to(x) if noise_at is not None and stochastic else still
        out = sampler.step(pred, x, i, stats, noise=noise, reduce=reduce)
        yield i, x, pred, noise, out
        x = out.x_next


def _check_trained(steps: Tensor, stats: StepStats) -> None:
    if len(steps) == 0:
        raise ConfigError("no step is trained", where="trained steps", fix="train at least one stochastic step")
    if (steps.diff() <= 0).any() or steps[0] < 0 or steps[-1] >= len(stats):
        raise ConfigError(f"{steps.tolist()} are not increasing indices into {len(stats)} steps", where="trained steps")
    still = steps[stats.std[steps] == 0]
    if len(still):
        raise ConfigError(
            f"step {int(still[0])} draws no noise, so it has no gradient",
            where="trained steps",
            fix="leave it out, or make it stochastic",
        )
