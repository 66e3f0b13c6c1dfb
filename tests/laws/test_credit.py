"""Laws of the credit schedules (2509.25774 and what follows from it)."""

from __future__ import annotations

import pytest
import torch

from pcpo.credit.diagnostics import spread
from pcpo.credit.schedules import CREDIT, guard, native, noise_aware, proportional, uniform
from pcpo.samplers import make_sampler
from pcpo.samplers.ddim import ddim
from pcpo.samplers.grids import ddim_grid, flow_grid, log_snr_uniform_grid

SETTINGS = {
    "ddim": make_sampler("ddim").stats(ddim_grid(50)),
    "flow_sde": make_sampler("flow_sde").stats(flow_grid(10, 3.0)),
    "dance_sde": make_sampler("dance_sde").stats(flow_grid(16, 3.0)),
    "cps": make_sampler("cps").stats(flow_grid(10, 3.0))[:-1],
    "precise": make_sampler("precise").stats(flow_grid(10, 3.0))[:-1],
}
SD15_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


@pytest.fixture(params=SETTINGS)
def stats(request):
    return SETTINGS[request.param]


@pytest.mark.parametrize("name", CREDIT)
def test_weights_are_float64_finite_and_not_negative(stats, name):
    weights = CREDIT[name].function(stats)
    assert weights.shape == stats.t.shape and weights.dtype == torch.float64
    assert weights.isfinite().all() and (weights >= 0).all()


def test_targets_keep_the_sum(stats):
    w = native(stats)
    torch.testing.assert_close(uniform(stats).sum(), w.sum(), rtol=1e-12, atol=0)
    if stats.borrowed[0]:
        w[0] = w[1]
    torch.testing.assert_close(proportional(stats).sum(), w.sum(), rtol=1e-12, atol=0)
    # and over any subset of trained steps, whose first one is no longer borrowed
    part = stats[torch.tensor([2, 4, 5, 7])]
    torch.testing.assert_close(proportional(part).sum(), native(part).sum(), rtol=1e-12, atol=0)


def test_schedules_do_not_change_their_input(stats):
    before = native(stats)
    for spec in CREDIT.values():
        spec.function(stats)
    assert torch.equal(native(stats), before)


def test_native_credit_is_disproportionate():
    w = native(SETTINGS["ddim"])
    assert (float(w.min()), float(w.max())) == pytest.approx((0.374, 3.275), abs=1e-3)
    assert int(w.argmax()) == len(w) - 2
    assert spread(w) == pytest.approx(8.75, abs=0.01)
    flow = native(SETTINGS["flow_sde"])
    assert spread(flow[1:]) == pytest.approx(22.2, abs=0.1)
    assert spread(native(SETTINGS["dance_sde"])) == pytest.approx(3.4, abs=0.05)


def test_snr_identity_at_eta_one():
    grid = ddim_grid(50)
    snr = grid.alpha_bar / (1 - grid.alpha_bar)
    w = native(make_sampler("ddim", eta=1.0).stats(grid))
    torch.testing.assert_close(w**2, snr[1:] / snr[:-1] - 1, rtol=1e-9, atol=0)


def test_log_snr_uniform_timesteps_have_uniform_native_credit():
    grid = log_snr_uniform_grid(torch.cumprod(1 - SD15_BETAS, 0), 20)
    w = native(make_sampler("ddim", eta=1.0).stats(grid))
    torch.testing.assert_close(w, w.mean().expand_as(w), rtol=1e-9, atol=0)
    assert (grid.timesteps.diff() < 0).all() and grid.times[-1] == 0


def test_proportional_and_noise_aware_share_a_time_profile_on_flow_sde():
    # away from t = 1, w ~ dt / s, so the loss weight s makes w s ~ dt
    stats = SETTINGS["flow_sde"][1:]
    effective = native(stats) * noise_aware(stats)
    target = proportional(stats)
    torch.testing.assert_close(effective / effective.sum(), target / target.sum(), rtol=1e-12, atol=0)


def test_guard_equalises_the_effective_credit(stats):
    effective = native(stats) * guard(stats)
    torch.testing.assert_close(effective, effective.mean().expand_as(effective), rtol=1e-12, atol=0)


def test_no_eta_lowers_a_ddim_weight_below_that_of_eta_one():
    grid = ddim_grid(50)
    least = native(make_sampler("ddim", eta=1.0).stats(grid))
    for eta in (0.2, 0.5, 0.8, 0.99):
        assert (native(make_sampler("ddim", eta=eta).stats(grid)) >= least).all()


def test_variance_schedule_of_the_authors():
    grid = ddim_grid(50)
    stats = make_sampler("ddim", variance="pcpo", target=4.5).stats(grid)
    c1 = ddim(grid, 0.0).x_coef * torch.sqrt(1 - grid.alpha_bar[:-1])
    c2 = torch.sqrt(1 - grid.alpha_bar[1:] - stats.std**2)
    torch.testing.assert_close((c1 + c2) / stats.std, torch.full_like(c1, 4.5), rtol=1e-9, atol=0)
    torch.testing.assert_close(stats.pred_coef, c1 - c2, rtol=1e-9, atol=1e-12)
    w = native(stats)
    assert (float(w.min()), float(w.max())) == pytest.approx((0.385, 3.37), abs=5e-3)
