from __future__ import annotations

import pytest
import torch

from pcpo.errors import ConfigError
from pcpo.objectives import OBJECTIVES, PENALTIES, log_ratio, make_objective
from pcpo.types import StepTerms

ADVANTAGE = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0])
LOG_RATIO = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.5])


def terms(log_ratio=LOG_RATIO, weight=None):
    return StepTerms(log_ratio, ADVANTAGE, torch.ones(5) if weight is None else weight)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_clipped_says_where_the_gradient_is_zero(name):
    leaf = LOG_RATIO.clone().requires_grad_(True)
    out = make_objective(name, 0.2)(terms(leaf))
    out.per_step.sum().backward()
    assert torch.equal(out.metrics["clipped"] == 1, (leaf.grad == 0) & (ADVANTAGE != 0))
    expected = [0, 0, 0, 0, 0] if OBJECTIVES[name].clips is None else [1, 0, 0, 1, 0]
    assert out.metrics["clipped"].tolist() == expected
    assert out.metrics["clipped_high"].tolist() == [*expected[:2], 0, 0, 0]
    assert out.metrics["clipped_low"].tolist() == [0, 0, *expected[2:4], 0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weight_scales_the_loss(name):
    objective = make_objective(name, 0.2)
    weight = torch.tensor([2.0, 0.5, 1.0, 3.0, 1.0])
    assert torch.equal(objective(terms(weight=weight)).per_step, weight * objective(terms()).per_step)


def test_metrics_are_detached_and_exact_near_zero():
    small = torch.tensor([1e-4, -1e-4, 0.0, 1e-6, -1e-6], requires_grad=True)
    out = make_objective("matching", 1e-4)(terms(small))
    assert not any(metric.requires_grad for metric in out.metrics.values())
    torch.testing.assert_close(out.metrics["approx_kl"][:2], torch.tensor([5e-9, 5e-9]), rtol=0.01, atol=0)
    assert (out.metrics["approx_kl"] >= 0).all()
    assert torch.equal(out.metrics["log_ratio"], small.detach())


@pytest.mark.parametrize("clip_range", [0.0, -1e-4, 1.0, float("nan")])
def test_clip_range_is_checked(clip_range):
    with pytest.raises(ConfigError, match="clip_range"):
        make_objective("matching", clip_range)


def test_unknown_objective():
    with pytest.raises(ConfigError, match="did you mean 'ppo_clip'"):
        make_objective("ppo_clp", 0.1)


def test_registry():
    assert set(PENALTIES) == {"exact", "rate"}
    assert all(spec.summary and spec.source for spec in OBJECTIVES.values())


def test_quadratic_term_can_be_dropped():
    diff, noise, weight = torch.full((1, 4), 0.5), torch.full((1, 4), 2.0), torch.tensor([3.0])
    assert log_ratio(diff, noise, weight, reduce="sum").item() == -4 * (1.5 * 2 + 0.5 * 1.5**2)
    assert log_ratio(diff, noise, weight, reduce="sum", quadratic=False).item() == -4 * 1.5 * 2
