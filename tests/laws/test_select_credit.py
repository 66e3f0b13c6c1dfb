"""Steps drawn in proportion to their credit: the gradient's expectation is that of training every step."""

from __future__ import annotations

import pytest
import torch

from pcpo.errors import ConfigError
from pcpo.trainer.schedule import inclusion, systematic
from training import run

WEIGHTS = torch.tensor([0.3, 8.0, 1.0, 0.05, 2.0, 0.7, 1.5], dtype=torch.float64)
OFFSETS = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_probabilities_are_proportional_and_at_most_one(count):
    p = inclusion(WEIGHTS, count)
    assert p.sum().item() == pytest.approx(count) and (p <= 1).all() and (p > 0).all()
    free = p < 1
    ratio = p[free] / WEIGHTS[free]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_the_estimate_is_unbiased(count):
    """The mean over all offsets of sum over drawn l / p is the sum of l, for any l."""
    loss = torch.randn(len(WEIGHTS), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = inclusion(WEIGHTS, count)
    drawn = [systematic(p, float(u)) for u in OFFSETS]
    assert all(len(rows.unique()) == count and (rows.diff() > 0).all() for rows in drawn[::97])
    mean = torch.stack([(loss / p)[rows].sum() for rows in drawn]).mean()
    assert mean.item() == pytest.approx(loss.sum().item(), abs=2e-2)


def test_the_weights_of_a_run_make_its_loss_unbiased(trainer):
    """Summed over iterations, each step counts 1 / E of the loss: factor / S where it is drawn, else 0."""
    it = trainer(
        "sd",
        sampler={"steps": 6},
        credit={"schedule": "native", "apply": "ratio"},
        objective={"name": "log_hinge"},
        train={"select": "credit", "fraction": 0.5},
    )
    algorithm, rounds = it.algorithm, 3000
    total = torch.zeros(6, dtype=torch.float64)
    for iteration in range(rounds):
        steps = algorithm.trained(iteration)
        total[steps] += algorithm.credit_of(steps).loss_weight / len(steps)
    torch.testing.assert_close(total / rounds, torch.full_like(total, 1 / 6), rtol=0.1, atol=0)


def test_it_trains(trainer):
    log = run(trainer("sd3", train={"select": "credit", "fraction": 0.5, "iterations": 2}))
    assert all(len(event.steps) == 2 and event.ratio_error == 0 for event in log.iterations)


def test_what_it_does_not_go_with(trainer):
    with pytest.raises(ConfigError, match=r"train\.select credit weighs the loss"):
        trainer("sd", train={"select": "credit", "fraction": 0.5}, kl={"form": "exact", "beta": 0.1})
