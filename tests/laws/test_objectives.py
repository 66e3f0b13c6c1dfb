"""Laws of the surrogates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcpo.objectives import OBJECTIVES, make_objective
from pcpo.objectives.ratio import log_ratio
from pcpo.objectives.surrogates import hinge, log_hinge, matching, ppo_clip, ratio, reinforce
from pcpo.types import StepTerms

XI = 1e-4
finite = st.floats(-5, 5, width=32)
near_clip = st.floats(-4, 4, width=32).map(lambda value: value * XI)


def value_and_grad(surrogate, log_ratio, advantage, xi=XI):
    leaf = log_ratio.clone().requires_grad_(True)
    loss = surrogate(leaf, advantage, xi)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), grad


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(near_clip | finite, finite), min_size=1, max_size=20),
    st.sampled_from([1e-6, 1e-4, 0.2]),
)
def test_hinge_has_the_gradient_of_ppo_clip_bit_for_bit(pairs, xi):
    log_ratio, advantage = torch.tensor(pairs).unbind(1)
    _, expected = value_and_grad(ppo_clip, log_ratio, advantage, xi)
    _, actual = value_and_grad(hinge, log_ratio, advantage, xi)
    assert torch.equal(actual, expected)


def test_gradients_agree_around_every_float_near_the_clip_boundary():
    # rho one float below, at and above 1 +- xi, where rounded products tie
    steps = torch.arange(-40, 41) * 2.0**-24
    log_ratio = torch.cat([torch.tensor(XI).log1p() + steps, torch.tensor(-XI).log1p() + steps])
    for advantage in (-1.99, -1.0, -0.3, 0.0, 0.6, 1.0, 1.9999):
        a = torch.full_like(log_ratio, advantage)
        _, expected = value_and_grad(ppo_clip, log_ratio, a)
        _, actual = value_and_grad(hinge, log_ratio, a)
        assert torch.equal(actual, expected)
        if advantage:
            full = (-a * ratio(log_ratio)).abs()
            assert ((actual == 0) | (actual.abs() == full)).all()
            assert (actual == 0).any() and (actual != 0).any()


def test_ppo_clip_is_the_textbook_formula():
    g = torch.Generator().manual_seed(0)
    log_ratio, advantage = (
        torch.randn(500, generator=g, dtype=torch.float64) * 0.3,
        torch.randn(500, generator=g),
    )
    rho = log_ratio.exp()
    textbook = torch.maximum(-advantage * rho, -advantage * rho.clamp(0.8, 1.2))
    torch.testing.assert_close(ppo_clip(log_ratio, advantage.double(), 0.2), textbook)


def test_hinges_are_the_textbook_formulas():
    g = torch.Generator().manual_seed(1)
    log_ratio, a = (torch.randn(500, generator=g, dtype=torch.float64) * f for f in (0.3, 1.0))
    expected = (0.2 * a.abs() - a * (log_ratio.exp() - 1)).clamp(min=0)
    torch.testing.assert_close(hinge(log_ratio, a, 0.2), expected)
    expected = (0.2 * a.abs() - a * log_ratio).clamp(min=0)
    torch.testing.assert_close(log_hinge(log_ratio, a, 0.2), expected)
    m = -log_ratio
    torch.testing.assert_close(matching(log_ratio, a, 0.2), (0.2 * a.abs() + a * m).clamp(min=0))
    torch.testing.assert_close(reinforce(log_ratio, a, 0.2), a * m)


@settings(max_examples=200, deadline=None)
@given(near_clip | finite, finite)
def test_log_hinge_active_set(log_ratio, advantage):
    _, grad = value_and_grad(log_hinge, torch.tensor([log_ratio]), torch.tensor([advantage]))
    xi = torch.tensor(XI)
    active = log_ratio < xi if advantage > 0 else log_ratio > -xi
    assert grad == (-torch.tensor(advantage) if active else 0.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_finite_far_from_the_sampling_policy(name):
    log_ratio = torch.tensor([1e4, -1e4, 1e4, -1e4, 0.0])
    advantage = torch.tensor([5.0, 5.0, -5.0, -5.0, 0.0])
    loss, grad = value_and_grad(OBJECTIVES[name].function, log_ratio, advantage)
    assert loss.isfinite().all() and grad.isfinite().all()
    out = make_objective(name, XI)(StepTerms(log_ratio, advantage, torch.ones(5)))
    assert all(metric.isfinite().all() for metric in out.metrics.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_zero_advantage_has_no_gradient(name):
    _, grad = value_and_grad(OBJECTIVES[name].function, torch.tensor([-1.0, 0.0, 1.0]), torch.zeros(3))
    assert (grad == 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_to_the_full_batch(name):
    g = torch.Generator().manual_seed(3)
    weights = torch.randn(6, generator=g, dtype=torch.float64, requires_grad=True)
    features, advantage = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((12, 6), (12,)))
    factor = torch.rand(12, generator=g, dtype=torch.float64)
    objective = make_objective(name, 0.2)

    def gradient(rows):
        log_ratio = features[rows] @ weights * 0.1
        out = objective(StepTerms(log_ratio, advantage[rows], factor[rows]))
        return torch.autograd.grad(out.per_step.sum() / 12, weights)[0]

    full = gradient(slice(0, 12))
    parts = sum(gradient(slice(i, i + 5)) for i in range(0, 12, 5))
    torch.testing.assert_close(parts, full, rtol=1e-12, atol=1e-15)
    assert full.abs().max() > 0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_a_huge_log_ratio_leaves_loss_gradient_and_metrics_finite(name, size):
    """Through the Gaussian step as well: predictions so far apart that log rho is +-1e4."""
    noise = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    for quadratic in (True, False):
        # along the noise: log rho = -(w a + w^2 a^2 / 2) mean(z^2); to raise it to 1e4 the noise must be large too
        scale = 1.0 if quadratic and size < 0 else 1e3
        z = scale * noise
        weight = torch.ones(2)
        power = float(z.square().mean())
        a = -1 + (1 - 2 * size / power) ** 0.5 if quadratic else -size / power
        diff = (a * z).requires_grad_(True)
        log_rho = log_ratio(diff, z, weight, quadratic=quadratic)
        assert float(log_rho.detach().mean()) == pytest.approx(size, rel=1e-3)
        for advantage in (5.0, -5.0, 0.0):
            terms = StepTerms(log_rho, torch.full((2,), advantage), torch.ones(2))
            out = make_objective(name, XI)(terms)
            (gradient,) = torch.autograd.grad(out.per_step.sum(), diff, retain_graph=True)
            assert out.per_step.isfinite().all() and gradient.isfinite().all(), (quadratic, advantage)
            assert all(value.isfinite().all() for value in out.metrics.values())
