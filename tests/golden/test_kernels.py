"""Steps of four reference implementations on fixed inputs (kernels.json, float32)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from pcpo.samplers import make_sampler
from pcpo.samplers.grids import ddim_grid
from pcpo.samplers.parameterisation import diffusion_eps
from pcpo.types import Grid

DATA = json.loads(Path(__file__).with_name("kernels.json").read_text())
PARAMETER = {"flow_sde": "noise_level", "cps": "noise_level", "dance_sde": "eta", "ddim": "eta"}


def latents(values):
    return torch.tensor(values, dtype=torch.float32).reshape(DATA["shape"])


def replay(case):
    """Our step, scored at the reference's x_next."""
    name = case["kernel"]
    sampler = make_sampler(name, **{PARAMETER[name]: case[PARAMETER[name]]})
    x, pred = latents(case["x"]), latents(case["model_output"])
    if name == "ddim":
        grid = ddim_grid(case["num_steps"])
        assert grid.timesteps[case["step"]] == case["timestep"]
        pred = diffusion_eps(pred, x, grid.alpha_bar[case["step"]], case["prediction_type"])
    else:
        times = torch.tensor(case["sigmas"], dtype=torch.float64)
        grid = Grid("flow", times[:-1] * 1000, times)
    return sampler.step(pred, x, case["step"], sampler.stats(grid), x_next=latents(case["x_next"]))


@pytest.mark.parametrize("case", DATA["cases"], ids=[f"{c['kernel']}-{c['step']}" for c in DATA["cases"]])
def test_step_matches_reference(case):
    out = replay(case)
    if "mean" in case:
        torch.testing.assert_close(out.mean, latents(case["mean"]), rtol=0, atol=1e-5)
        torch.testing.assert_close(out.std, torch.tensor(case["std"]), rtol=1e-5, atol=1e-6)
    expected = torch.tensor(case["log_prob_mean_over_dims"])
    if case["kernel"] == "cps":
        # that code scores by minus the mean squared deviation, without 1 / (2 s^2) and constants
        ours = -(2 * out.std**2) * (-out.log_prob - out.std.log() - 0.5 * math.log(2 * math.pi))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    else:
        torch.testing.assert_close(out.log_prob, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in DATA["cases"] if "x0" in c], ids=lambda c: f"{c['kernel']}-{c['step']}")
def test_dance_x0(case):
    from pcpo.samplers.parameterisation import flow_x0_from_v

    t = torch.tensor(case["sigmas"][case["step"]], dtype=torch.float64)
    x0 = flow_x0_from_v(latents(case["model_output"]), latents(case["x"]), t)
    torch.testing.assert_close(x0, latents(case["x0"]), rtol=0, atol=1e-5)
