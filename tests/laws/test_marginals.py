"""The samplers keep the marginals: data N(1, 0.5^2), exact velocity, uniform grid, last step ODE.

Everything is affine and Gaussian, so mean and variance go through the coefficients exactly, without sampling.
"""

from __future__ import annotations

import pytest
import torch

from pcpo.samplers import make_sampler
from pcpo.samplers.grids import flow_grid

MEAN, VAR = 1.0, 0.25

FINAL_STD = {
    ("ode", None): (0.4308, 0.4854, 0.4993),
    ("flow_sde", 0.7): (0.4796, 0.4985, 0.5009),
    ("dance_sde", 0.3): (0.4400, 0.4876, 0.4994),
    ("cps", 0.7): (0.3702, 0.4104, 0.4245),
    ("precise", 0.7): (0.4188, 0.4816, 0.4990),
    ("precise", 1.5): (0.3819, 0.4673, 0.4981),
}
PARAMETER = {"flow_sde": "noise_level", "dance_sde": "eta", "cps": "noise_level", "precise": "eta"}


def final_moments(name, value, num_steps):
    grid = flow_grid(num_steps)
    sampler = make_sampler(name, **({} if value is None else {PARAMETER[name]: value}))
    stochastic = torch.ones(num_steps, dtype=torch.bool)
    stochastic[-1] = False
    stats = sampler.stats_with(grid, stochastic)
    mean, var = 0.0, 1.0
    for t, a, k, s in zip(*(f.tolist() for f in (stats.t, stats.x_coef, stats.pred_coef, stats.std)), strict=True):
        # v(x) = E[eps - x0 | x_t = x] of the Gaussian, an affine function of x
        slope = (t - (1 - t) * VAR) / ((1 - t) ** 2 * VAR + t**2)
        offset = -MEAN - slope * (1 - t) * MEAN
        mean, var = a * mean - k * (slope * mean + offset), (a - k * slope) ** 2 * var + s**2
    return mean, var**0.5


@pytest.mark.parametrize("name, value", FINAL_STD)
def test_final_mean_and_std(name, value):
    for num_steps, expected in zip((10, 50, 1000), FINAL_STD[name, value], strict=True):
        mean, std = final_moments(name, value, num_steps)
        assert std == pytest.approx(expected, abs=6e-5)
        assert mean == pytest.approx(MEAN, abs=1e-9)
