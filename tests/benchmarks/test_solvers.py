"""The second-order steps that were measured are what their name says."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import solvers
from pcpo.samplers.grids import ddim_grid_from_scheduler, flow_grid, log_snr_uniform_grid

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MEAN, STD = 1.0, 0.5
X = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64)


def alphas():
    return DDIMScheduler(**SD15, clip_sample=False).alphas_cumprod.double()


def gaussian(grid):
    """What a network that knows data N(MEAN, STD^2) predicts, and the exact end of the ODE from X."""
    flow = grid.alpha_bar is None
    alpha = 1 - grid.times if flow else grid.alpha_bar.sqrt()
    sigma = grid.times if flow else (1 - grid.alpha_bar).sqrt()
    spread = (alpha**2 * STD**2 + sigma**2).sqrt()

    def predict(x, timestep):
        i = int((grid.timesteps == timestep).nonzero()[0])
        eps = sigma[i] * (x - alpha[i] * MEAN) / spread[i] ** 2
        return eps - (MEAN + alpha[i] * STD**2 * (x - alpha[i] * MEAN) / spread[i] ** 2) if flow else eps

    return predict, alpha[-1] * MEAN + spread[-1] / spread[0] * (X - alpha[0] * MEAN)


@pytest.mark.parametrize("make", [flow_grid, lambda n: log_snr_uniform_grid(alphas(), n)], ids=["flow", "diffusion"])
@pytest.mark.parametrize("order", [1, 2])
def test_order_on_a_gaussian(make, order):
    def error(n):
        predict, exact = gaussian(make(n))
        return float((solvers.solve(predict, make(n), X, order) - exact).abs().max())

    assert math.log2(error(80) / error(160)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("make", [flow_grid, lambda n: log_snr_uniform_grid(alphas(), n)], ids=["flow", "diffusion"])
def test_nothing_to_extrapolate_is_the_first_order(make):
    """A prediction that stays as it is, and steps that each come after a stochastic one."""
    grid = make(6)
    ab = grid.alpha_bar
    at = {float(t): i for i, t in enumerate(grid.timesteps)}

    def still(x, timestep):  # the same velocity, or the same clean picture, at every step
        return X if ab is None else (x - ab[at[float(timestep)]].sqrt() * X) / (1 - ab[at[float(timestep)]]).sqrt()

    first, second = (solvers.solve(still, grid, X, order) for order in (1, 2))
    torch.testing.assert_close(second, first, rtol=0, atol=1e-12)
    noise = {i: torch.ones_like(X) for i in (0, 2, 4)}
    predict = gaussian(grid)[0]
    first, second = (solvers.solve(predict, grid, X, order, noise=noise) for order in (1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(*(solvers.solve(predict, grid, X, order, noise={0: X}) for order in (1, 2)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # numpy 2 in diffusers
@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_diffusion_is_diffusers_dpm_solver(num_steps):
    grid = ddim_grid_from_scheduler(
        DDIMScheduler(**SD15, clip_sample=False, steps_offset=1, set_alpha_to_one=False), num_steps
    )
    scheduler = DPMSolverMultistepScheduler(**SD15, final_sigmas_type="sigma_min", lower_order_final=False)
    scheduler.set_timesteps(timesteps=grid.timesteps.long().tolist())

    def predict(x, timestep):
        return torch.tanh(x) * (0.5 + timestep / 2000)

    theirs = X.float()
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(predict(theirs, timestep), timestep, theirs).prev_sample
    ours = solvers.solve(predict, grid, X, 2, limit=math.inf)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=1e-5)


def test_a_finer_grid_passes_through_the_same_points():
    for grid in (flow_grid(5, 3.0), log_snr_uniform_grid(alphas(), 5)):
        fine = solvers.refine(grid, 4, None if grid.alpha_bar is None else alphas())
        torch.testing.assert_close(fine.times[::4], grid.times)
        torch.testing.assert_close(fine.timesteps[::4], grid.timesteps)
