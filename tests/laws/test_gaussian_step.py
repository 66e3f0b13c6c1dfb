"""Laws of one Gaussian step, for every stochastic sampler."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pcpo.credit.schedules import native
from pcpo.objectives.penalties import kl_exact, kl_rate
from pcpo.objectives.ratio import log_ratio
from pcpo.samplers import SAMPLERS, make_sampler
from pcpo.samplers.base import gaussian_kl, gaussian_log_prob, reduce_latent
from pcpo.samplers.grids import ddim_grid, flow_grid

STOCHASTIC = ["ddim", "flow_sde", "dance_sde", "cps", "precise"]
SHAPE = (4, 3, 5, 5)


@pytest.fixture(params=STOCHASTIC)
def setting(request):
    """Sampler, stats of its stochastic steps, and float64 tensors for four (picture, step) pairs."""
    name = request.param
    sampler = make_sampler(name)
    stats = sampler.stats(ddim_grid(10) if SAMPLERS[name].family == "diffusion" else flow_grid(10, 3.0))
    stats = stats[stats.std > 0]
    g = torch.Generator().manual_seed(7)
    x_t, pred, noise = (torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(3))
    return sampler, stats, torch.tensor([0, 3, 5, 8]), x_t, pred, noise


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_log_prob_is_normal(setting, reduce):
    sampler, stats, i, x_t, pred, noise = setting
    out = sampler.step(pred, x_t, i, stats, noise=noise, reduce=reduce)
    dense = Normal(out.mean, out.std.view(-1, 1, 1, 1)).log_prob(out.x_next)
    expected = reduce_latent(dense, reduce)
    torch.testing.assert_close(out.log_prob, expected, rtol=1e-12, atol=1e-12)


def test_scoring_repeats_sampling_bit_for_bit(setting):
    sampler, stats, i, x_t, pred, noise = setting
    x_t, pred, noise = x_t.float(), pred.float(), noise.float()
    drawn = sampler.step(pred, x_t, i, stats, noise=noise)
    scored = sampler.step(pred, x_t, i, stats, x_next=drawn.x_next)
    assert torch.equal(drawn.log_prob, scored.log_prob)
    assert drawn.log_prob.dtype == torch.float32


def test_autograd_credit_is_k_over_s(setting):
    sampler, stats, i, x_t, pred, noise = setting
    pred.requires_grad_(True)
    x_next = sampler.step(pred.detach(), x_t, i, stats, noise=noise).x_next
    sampler.step(pred, x_t, i, stats, x_next=x_next, reduce="sum").log_prob.sum().backward()
    measured = pred.grad.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    torch.testing.assert_close(measured, native(stats)[i], rtol=1e-9, atol=0)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_log_ratio_is_the_difference_of_log_probs(setting, reduce):
    sampler, stats, i, x_t, pred, noise = setting
    new = pred + 0.1 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    old = sampler.step(pred, x_t, i, stats, noise=noise, reduce=reduce)
    scored = sampler.step(new, x_t, i, stats, x_next=old.x_next, reduce=reduce)
    ours = log_ratio(new - pred, noise, native(stats)[i], reduce=reduce)
    torch.testing.assert_close(ours, scored.log_prob - old.log_prob, rtol=1e-9, atol=1e-11)


def test_log_ratio_is_exactly_zero_at_the_sampling_policy(setting):
    _, stats, i, _, pred, noise = setting
    pred = pred.float()
    assert torch.equal(log_ratio(pred - pred.clone(), noise.float(), native(stats)[i]), torch.zeros(4))


def test_expected_log_ratio_is_minus_kl(setting):
    _, stats, i, _, pred, _ = setting
    new = pred + 0.3
    w = native(stats)[i]
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    # antithetic pair: the linear term cancels, what is left is -KL
    both = log_ratio(new - pred, noise, w, reduce="sum") + log_ratio(new - pred, -noise, w, reduce="sum")
    kl = kl_exact(new - pred, stats[i], "sum")
    torch.testing.assert_close(both / 2, -kl)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_kl_is_the_closed_form(setting, reduce):
    sampler, stats, i, x_t, pred, noise = setting
    ref = pred - 0.2 * noise
    a = sampler.step(pred, x_t, i, stats, noise=noise)
    b = sampler.step(ref, x_t, i, stats, noise=noise)
    std = a.std.view(-1, 1, 1, 1)
    expected = reduce_latent(kl_divergence(Normal(a.mean, std), Normal(b.mean, std)), reduce)
    exact = kl_exact(pred - ref, stats[i], reduce)
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gaussian_kl(a.mean, b.mean, a.std, reduce), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kl_rate(pred - ref, stats[i], reduce), expected * stats.dt[i])


def test_sum_is_mean_times_dimensions(setting):
    sampler, stats, i, x_t, pred, noise = setting
    mean = sampler.step(pred, x_t, i, stats, noise=noise, reduce="mean").log_prob
    total = sampler.step(pred, x_t, i, stats, noise=noise, reduce="sum").log_prob
    torch.testing.assert_close(total, mean * x_t[0].numel())


def test_prediction_coefficient_is_never_negative(setting):
    assert (setting[1].pred_coef > 0).all()


def test_packed_latents(setting):
    sampler, stats, i, x_t, pred, noise = setting
    out = sampler.step(pred, x_t, i, stats, noise=noise)
    packed = sampler.step(pred.flatten(2), x_t.flatten(2), i, stats, noise=noise.flatten(2))
    assert torch.equal(out.x_next.flatten(2), packed.x_next)
    torch.testing.assert_close(out.log_prob, packed.log_prob)


def test_rows_with_std_zero_are_nan_and_leave_the_others_finite():
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    log_prob = gaussian_log_prob(x, torch.zeros(2, 3), torch.tensor([0.0, 0.5]))
    assert log_prob[0].isnan()
    log_prob[1].backward()
    assert x.grad.isfinite().all()


def test_exactly_one_of_noise_and_x_next(setting):
    sampler, stats, i, x_t, pred, noise = setting
    with pytest.raises(ValueError, match="exactly one"):
        sampler.step(pred, x_t, i, stats)
    with pytest.raises(ValueError, match="exactly one"):
        sampler.step(pred, x_t, i, stats, noise=noise, x_next=noise)
