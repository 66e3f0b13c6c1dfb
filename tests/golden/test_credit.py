"""Per-step credit of the reference settings (credit.json, float64), to 1e-10."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pcpo.credit.schedules import native, proportional, uniform
from pcpo.samplers import make_sampler
from pcpo.samplers.grids import ddim_grid, flow_grid

CASES = json.loads(Path(__file__).with_name("credit.json").read_text())
DDIM = [c for c in CASES if c["sampler"] == "ddim"]
FLOW = next(c for c in CASES if c["sampler"] == "flow_sde")
DANCE = next(c for c in CASES if c["sampler"] == "dance_sde")


def near(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", DDIM, ids=[f"{c['num_steps']}-eta{c['eta']}" for c in DDIM])
def test_ddim(case):
    grid = ddim_grid(case["num_steps"])
    stats = make_sampler("ddim", eta=case["eta"]).stats(grid)
    assert grid.timesteps.tolist() == case["timesteps"]
    near(stats.std, case["std"])
    near(native(stats), case["native"])
    near(uniform(stats), [case["uniform_target"]] * case["num_steps"])


def flow_stats(case, **parameter):
    grid = flow_grid(case["num_steps"], case["shift"])
    near(grid.times, case["sigmas"])
    stats = make_sampler(case["sampler"], **parameter).stats(grid)
    near(stats.std, case["std"])
    return stats


def test_flow_sde():
    stats = flow_stats(FLOW, noise_level=FLOW["noise_level"])
    near(native(stats), FLOW["native_as_coded"])
    near(proportional(stats), FLOW["target_all_steps"])
    near(proportional(stats).sum(), sum(FLOW["native_first_copied"]))


def test_dance_sde():
    # its rule has a value of its own at t = 1: no copy there
    stats = flow_stats(DANCE, eta=DANCE["eta"])
    near(native(stats), DANCE["native"])
    near(proportional(stats), DANCE["target_all_steps"])


def test_published_zeta():
    flow = flow_stats(FLOW, noise_level=FLOW["noise_level"])
    dance = flow_stats(DANCE, eta=DANCE["eta"])
    for stats, zeta in [
        (flow, FLOW["zeta_all_steps"]),
        (flow[:-1], FLOW["zeta_without_last_step"]),
        (dance, DANCE["zeta_all_steps"]),
    ]:
        ratio = proportional(stats) / stats.dt
        torch.testing.assert_close(ratio, torch.full_like(ratio, zeta), rtol=0, atol=1e-12)
    assert FLOW["zeta_all_steps"] == 4.3152134639895925
    assert DANCE["zeta_all_steps"] == 13.343190914766362
