"""Time grids: from the pipeline's own scheduler, or ideal ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pcpo.errors import ConfigError
from pcpo.types import Grid

NUM_TRAIN_TIMESTEPS = 1000


def flow_grid(num_steps: int, shift: float = 1.0) -> Grid:
    """shift s / (1 + (shift - 1) s) of s = linspace(1, 0, N + 1); the backbone is fed 1000 t."""
    _check_steps(num_steps)
    s = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    times = shift * s / (1 + (shift - 1) * s)
    return Grid("flow", times[:-1] * NUM_TRAIN_TIMESTEPS, times)


def flow_grid_from_scheduler(
    scheduler: Any, num_steps: int, mu: float | None = None, sigmas: Sequence[float] | None = None
) -> Grid:
    """The sigmas and timesteps that a FlowMatchEulerDiscreteScheduler returns (SD3's are shifted twice).

    mu: for a scheduler with dynamic shifting. sigmas: for a pipeline that gives its own, as FLUX's does
    (linspace(1, 1/N, N)). The scheduler is left as it was. Raises ConfigError if it has no such grid.
    """
    _check_steps(num_steps)
    where = f"scheduler {type(scheduler).__name__}"
    if not hasattr(scheduler, "set_timesteps") or not hasattr(scheduler, "sigmas"):
        raise ConfigError("no flow-matching sigmas", where=where, fix="use FlowMatchEulerDiscreteScheduler")
    own = copy.deepcopy(scheduler)
    if getattr(own.config, "use_dynamic_shifting", False) and mu is None:
        raise ConfigError("dynamic shifting needs mu", where=where, fix="pass mu, or use the ideal grid with a shift")
    own.set_timesteps(num_steps, mu=mu, **({} if sigmas is None else {"sigmas": list(sigmas)}))
    times = own.sigmas.double().cpu()
    if len(times) != num_steps + 1 or times[0] > 1 or times[-1] != 0 or (times.diff() >= 0).any():
        raise ConfigError(
            "its sigmas do not fall from at most 1 to 0",
            where=where,
            fix="use FlowMatchEulerDiscreteScheduler without invert_sigmas",
        )
    return Grid("flow", own.timesteps.double().cpu(), times)


def ddim_grid(
    num_steps: int,
    *,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
    steps_offset: int = 1,
) -> Grid:
    """SD1.5's grid in float64: scaled-linear betas, leading spacing, the last step ending at timestep 0."""
    _check_steps(num_steps, num_train_timesteps)
    root = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64)
    alphas_cumprod = torch.cumprod(1 - root**2, 0)
    stride = num_train_timesteps // num_steps
    timesteps = torch.arange(num_steps).flip(0) * stride + steps_offset
    last = max(int(timesteps[-1]) - stride, 0)
    return _ddim_grid(timesteps, last, alphas_cumprod, alphas_cumprod[last])


def ddim_grid_from_scheduler(scheduler: Any, num_steps: int) -> Grid:
    """The steps that a DDIMScheduler takes, down to its final_alpha_cumprod; the scheduler is left as it was.

    Raises ConfigError where its step is not the affine one (clipped or thresholded x0, zero terminal SNR), or
    where a step does not end where the next begins: DDIMScheduler always goes back num_train // num_steps.
    """
    where = f"scheduler {type(scheduler).__name__}"
    remake = "make one with DDIMScheduler.from_config(scheduler.config"
    if not all(hasattr(scheduler, part) for part in ("set_timesteps", "alphas_cumprod", "final_alpha_cumprod")):
        raise ConfigError("no alphas_cumprod to make a DDIM grid from", where=where, fix=f"{remake})")
    for option in ("clip_sample", "thresholding"):
        if getattr(scheduler.config, option, False):
            raise ConfigError(
                f"{option} is on: its step is not Gaussian", where=where, fix=f"{remake}, {option}=False)"
            )
    num_train = scheduler.config.num_train_timesteps
    _check_steps(num_steps, num_train)
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_steps)
    timesteps = own.timesteps.cpu()
    previous = timesteps - num_train // num_steps
    if len(timesteps) != num_steps or not torch.equal(previous[:-1], timesteps[1:]):
        raise ConfigError(
            f"{num_steps} steps do not join: some end at another timestep than the next begins",
            where=where,
            fix=f"use DDIMScheduler with leading spacing, or a number of steps that divides {num_train}",
        )
    alphas_cumprod = own.alphas_cumprod.double().cpu()
    if alphas_cumprod[timesteps[0]] <= 0:
        raise ConfigError(
            "zero terminal SNR: the first step has no x0 from eps",
            where=where,
            fix=f"{remake}, rescale_betas_zero_snr=False)",
        )
    last = int(previous[-1])
    final = alphas_cumprod[last] if last >= 0 else torch.as_tensor(own.final_alpha_cumprod).double().cpu()
    return _ddim_grid(timesteps, max(last, 0), alphas_cumprod, final)


def log_snr_uniform_grid(alphas_cumprod: Tensor, num_steps: int) -> Grid:
    """Equal steps in log SNR = log(ab / (1 - ab)) from the noisiest training timestep to timestep 0.

    Timesteps are interpolated, so they are fractional (U-Nets take them as they are). With DDIM at eta 1 the
    native credit is the same at every step: w^2 = SNR_p / SNR_t - 1.
    """
    _check_steps(num_steps)
    log_snr = torch.logit(alphas_cumprod.double().cpu())
    points = torch.linspace(float(log_snr[-1]), float(log_snr[0]), num_steps + 1, dtype=torch.float64)
    # log SNR falls with the timestep: find the two training timesteps around each point
    left = (torch.searchsorted(-log_snr, -points, right=True) - 1).clamp(0, len(log_snr) - 2)
    fraction = (log_snr[left] - points) / (log_snr[left] - log_snr[left + 1])
    at = left + fraction
    return Grid("diffusion", at[:-1], at / len(log_snr), torch.sigmoid(points))


def _ddim_grid(timesteps: Tensor, last: int, alphas_cumprod: Tensor, final: Tensor) -> Grid:
    return Grid(
        "diffusion",
        timesteps.double(),
        torch.cat([timesteps, torch.tensor([last])]).double() / len(alphas_cumprod),
        torch.cat([alphas_cumprod[timesteps], final.reshape(1)]),
    )


def _check_steps(num_steps: int, maximum: int | None = None) -> None:
    if num_steps < 1 or (maximum is not None and num_steps > maximum):
        limit = f"1 to {maximum}" if maximum is not None else "1 or more"
        raise ConfigError(f"{num_steps} steps", where="sampler.steps", fix=f"use {limit}")
