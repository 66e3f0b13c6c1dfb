from __future__ import annotations

import pytest
import torch

from pcpo.errors import ConfigError
from pcpo.samplers import SAMPLERS, make_sampler
from pcpo.samplers.base import reduce_latent
from pcpo.samplers.grids import ddim_grid, flow_grid

GRIDS = {"diffusion": ddim_grid(8), "flow": flow_grid(8, 3.0)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_defaults_and_explicit_parameter_agree(name):
    spec = SAMPLERS[name]
    grid = GRIDS["diffusion" if spec.family == "diffusion" else "flow"]
    explicit = {spec.parameter: spec.default} if spec.parameter else {}
    assert torch.equal(make_sampler(name).stats(grid).std, make_sampler(name, **explicit).stats(grid).std)
    assert spec.summary and spec.source


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_grid_of_the_other_family_is_refused(name):
    family = SAMPLERS[name].family
    for kind, grid in GRIDS.items():
        if family in (kind, "both"):
            assert len(make_sampler(name).stats(grid)) == 8
        else:
            with pytest.raises(ConfigError, match=f"{kind} grid"):
                make_sampler(name).stats(grid)


@pytest.mark.parametrize(
    "name, params, message",
    [
        ("flow_sd", {}, "flow_sde"),
        ("quantum", {}, "use one of"),
        ("flow_sde", {"eta": 0.5}, "noise_level"),
        ("ode", {"eta": 0.5}, "no parameter"),
        ("ddim", {"eta": 1.5}, "out of range"),
        ("ddim", {"eta": -0.1}, "out of range"),
        ("dance_sde", {"eta": float("nan")}, "out of range"),
        ("cps", {"noise_level": 2}, "out of range"),
        ("flow_sde", {"noise_level": "much"}, "out of range"),
        ("ddim", {"variance": "pcp"}, "pcpo"),
        ("ddim", {"variance": "pcpo", "eta": 1.0}, "no effect"),
        ("ddim", {"target": 4.5}, "unknown parameter"),
    ],
)
def test_refusals(name, params, message):
    with pytest.raises(ConfigError, match=message):
        make_sampler(name, **params)


def test_variance_eta_is_plain_ddim():
    plain = make_sampler("ddim", eta=0.5).stats(GRIDS["diffusion"])
    assert torch.equal(make_sampler("ddim", variance="eta", eta=0.5).stats(GRIDS["diffusion"]).std, plain.std)


def test_variance_that_does_not_exist():
    with pytest.raises(ConfigError, match="no variance gives weight"):
        make_sampler("ddim", variance="pcpo").stats(ddim_grid(5))


def test_borrowed_marks_flow_sde_at_one_only():
    grid = GRIDS["flow"]
    assert make_sampler("flow_sde").stats(grid).borrowed.tolist() == [True] + [False] * 7
    assert not make_sampler("dance_sde").stats(grid).borrowed.any()
    later = torch.tensor([False] + [True] * 7)
    assert not make_sampler("flow_sde").stats_with(grid, later).borrowed.any()


def test_mask_of_the_wrong_length():
    with pytest.raises(ConfigError, match="3 stochastic flags for 8 steps"):
        make_sampler("cps").stats_with(GRIDS["flow"], torch.ones(3, dtype=torch.bool))


def test_coefficients_that_are_not_finite():
    grid = ddim_grid(4)
    grid.alpha_bar[0] = 0
    with pytest.raises(ConfigError, match="no finite coefficients at step 0"):
        make_sampler("ddim").stats(grid)


def test_unknown_reduction():
    with pytest.raises(ConfigError, match="median"):
        reduce_latent(torch.zeros(2, 3), "median")
