"""Without noise every sampler is the step of diffusers' schedulers; with it DDIM still is."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from pcpo.samplers import SAMPLERS, make_sampler
from pcpo.samplers.grids import ddim_grid_from_scheduler, flow_grid_from_scheduler

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def tensors(count=3):
    g = torch.Generator().manual_seed(11)
    return [torch.randn(2, 4, 3, 3, generator=g, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize(
    "extra, num_steps",
    [
        ({"steps_offset": 1, "set_alpha_to_one": False}, 50),
        ({"steps_offset": 0, "set_alpha_to_one": True}, 30),
        ({"timestep_spacing": "trailing"}, 20),
    ],
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_diffusers(extra, num_steps, eta):
    scheduler = DDIMScheduler(**SD15, **extra)
    grid = ddim_grid_from_scheduler(scheduler, num_steps)
    assert scheduler.num_inference_steps is None
    sampler = make_sampler("ddim", eta=eta)
    stats = sampler.stats(grid)
    scheduler.set_timesteps(num_steps)
    assert grid.timesteps.tolist() == scheduler.timesteps.tolist()
    x, eps, noise = tensors()
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample
        ours = sampler.step(eps, x, i, stats, noise=noise).x_next
        # diffusers takes the coefficients in float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde", "cps", "precise", "ode"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_without_noise_is_diffusers_euler(name, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    grid = flow_grid_from_scheduler(scheduler, 10)
    parameter = SAMPLERS[name].parameter
    sampler = make_sampler(name, **({parameter: 0.0} if parameter else {}))
    stats = sampler.stats(grid)
    assert (stats.std == 0).all()
    scheduler.set_timesteps(10)
    assert torch.equal(grid.times, scheduler.sigmas.double())
    x, v, noise = (part.float() for part in tensors())
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(v, t, x).prev_sample
        ours = sampler.step(v, x, i, stats, noise=noise).x_next
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, spec in SAMPLERS.items() if spec.family != "both"])
def test_masked_steps_are_the_ode(name):
    diffusion = SAMPLERS[name].family == "diffusion"
    grid = (
        ddim_grid_from_scheduler(DDIMScheduler(**SD15), 6)
        if diffusion
        else flow_grid_from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), 6)
    )
    mask = torch.tensor([True, False, True, False, False, True])
    sampler = make_sampler(name)
    mixed, own, still = sampler.stats_with(grid, mask), sampler.stats(grid), make_sampler("ode").stats(grid)
    for field in ("x_coef", "pred_coef", "std"):
        assert torch.equal(getattr(mixed, field)[mask], getattr(own, field)[mask])
        assert torch.equal(getattr(mixed, field)[~mask], getattr(still, field)[~mask])
    assert (mixed.std[~mask] == 0).all()
