from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

from pcpo.errors import ConfigError
from pcpo.samplers.grids import (
    ddim_grid,
    ddim_grid_from_scheduler,
    flow_grid,
    flow_grid_from_scheduler,
    log_snr_uniform_grid,
)

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SD15_SCHEDULER = DDIMScheduler(**SD15, steps_offset=1, set_alpha_to_one=False)


def test_flow_grid():
    grid = flow_grid(4)
    assert grid.times.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert grid.timesteps.tolist() == [1000.0, 750.0, 500.0, 250.0]
    assert grid.times.dtype == torch.float64
    shifted = flow_grid(4, shift=3.0)
    assert shifted.times[1] == pytest.approx(3 * 0.75 / 2.5)
    assert (shifted.times[0], shifted.times[-1]) == (1, 0)


def test_sd3_scheduler_shifts_twice():
    # 0.96013: the second sigma of the SD3.5 pipeline at 10 steps
    grid = flow_grid_from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), 10)
    assert float(grid.times[1]) == pytest.approx(0.9601293206214905, abs=1e-7)
    assert grid.times[-1] == 0 and grid.num_steps == 10


def test_dynamic_shifting_needs_mu():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(ConfigError, match="mu"):
        flow_grid_from_scheduler(scheduler, 4)
    grid = flow_grid_from_scheduler(scheduler, 4, mu=1.15, sigmas=[1.0, 0.75, 0.5, 0.25])
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.15)
    assert torch.equal(grid.times, scheduler.sigmas.double())
    assert torch.equal(grid.timesteps, scheduler.timesteps.double())


@pytest.mark.parametrize("scheduler", [object(), SD15_SCHEDULER, FlowMatchEulerDiscreteScheduler(invert_sigmas=True)])
def test_scheduler_without_flow_grid(scheduler):
    with pytest.raises(ConfigError, match=r"sigmas.*FlowMatchEulerDiscreteScheduler"):
        flow_grid_from_scheduler(scheduler, 4)


def test_schedulers_are_left_as_they_were():
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow_grid_from_scheduler(flow, 7)
    assert len(flow.sigmas) == 1000
    ddim_grid_from_scheduler(SD15_SCHEDULER, 7)
    assert len(SD15_SCHEDULER.timesteps) == 1000


def test_ideal_ddim_grid_is_sd15s():
    ours, theirs = ddim_grid(50), ddim_grid_from_scheduler(SD15_SCHEDULER, 50)
    assert torch.equal(ours.timesteps, theirs.timesteps) and torch.equal(ours.times, theirs.times)
    torch.testing.assert_close(ours.alpha_bar, theirs.alpha_bar, rtol=0, atol=1e-6)
    assert ours.times[-1] == 0


def test_last_alpha_is_the_schedulers_final_one():
    assert ddim_grid_from_scheduler(DDIMScheduler(**SD15), 10).alpha_bar[-1] == 1
    assert ddim_grid_from_scheduler(SD15_SCHEDULER, 10).alpha_bar[-1] == pytest.approx(0.99915, abs=1e-6)


@pytest.mark.parametrize(
    "scheduler, reason",
    [
        (FlowMatchEulerDiscreteScheduler(), "no alphas_cumprod"),
        (DDIMScheduler(), "clip_sample is on"),
        (DDIMScheduler(clip_sample=False, thresholding=True), "thresholding is on"),
        (
            DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"),
            "terminal SNR",
        ),
        (DDIMScheduler(clip_sample=False, timestep_spacing="linspace"), "do not join"),
        (PNDMScheduler(skip_prk_steps=True), "do not join"),
    ],
)
def test_scheduler_without_ddim_grid(scheduler, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        ddim_grid_from_scheduler(scheduler, 20)
    assert error.value.fix


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_number_of_steps(num_steps):
    with pytest.raises(ConfigError, match="steps"):
        ddim_grid(num_steps)
    if num_steps < 1:
        with pytest.raises(ConfigError, match="steps"):
            flow_grid(num_steps)


def test_log_snr_uniform_timesteps_are_those_of_the_points():
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    alphas = torch.cumprod(1 - root**2, 0)
    grid = log_snr_uniform_grid(alphas, 999)
    assert grid.timesteps[0] == 999 and grid.times[-1] == 0
    # between two training timesteps, never outside them
    near = grid.timesteps.round().long()
    gap = (torch.logit(alphas)[:-1] - torch.logit(alphas)[1:]).max()
    assert ((torch.logit(alphas)[near] - torch.logit(grid.alpha_bar[:-1])).abs() <= gap).all()
