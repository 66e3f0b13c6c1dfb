"""The measured credit schedule in training: it reads what it should, changes nothing else, and survives a restart."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pcpo.credit.adaptive import signal_and_noise
from pcpo.trainer import measure
from pcpo.trainer.measure import StepGradients, split_groups
from training import constant, run, same, weights

ADAPTIVE = {"schedule": "adaptive"}


@pytest.fixture
def taken(monkeypatch):
    """Every StepGradients that a run made, with its rows, and the gradient that its optimiser step used."""
    seen = []

    def watch(trainer):
        made = StepGradients.__init__
        optimise = trainer.learner.updater._optimise

        def init(self, *args):
            made(self, *args)
            seen.append(self)

        def step(where):
            if seen and not hasattr(seen[-1], "used"):
                seen[-1].used = torch.cat([p.grad.flatten().clone() for p in trainer.state.parameters])
            return optimise(where)

        monkeypatch.setattr(StepGradients, "__init__", init)
        trainer.learner.updater._optimise = step
        return seen

    return watch


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("batch", [{}, {"rollout": 2, "micro": 4}], ids=["whole", "parts"])
def test_the_rows_add_up_to_the_gradient_of_the_update(trainer, taken, family, batch):
    it = trainer(family, credit=ADAPTIVE, batch=batch, optim={"max_grad_norm": 1e6})
    seen = taken(it)
    run(it)
    (gradients,) = seen
    assert gradients.rows.shape[:2] == (2, 4) and gradients.stride == 1
    torch.testing.assert_close(gradients.rows.sum((0, 1)), gradients.used, rtol=1e-3, atol=1e-6 * gradients.used.norm())


@pytest.mark.parametrize("apply, objective", [("matching", "matching"), ("ratio", "ppo_clip")])
def test_the_figures_do_not_depend_on_the_credit_in_force(trainer, apply, objective):
    """signal and noise are at unit weight: rows over credit, whatever way the credit acts."""

    def first(output, scale):
        it = trainer("sd", output=output, credit={**ADAPTIVE, "apply": apply}, objective={"name": objective})
        it.algorithm.adaptive.start *= scale
        it.algorithm.adaptive.start /= it.algorithm.adaptive.start.mean()
        log = run(it)
        return (torch.tensor(values).double() for values in (log.credits[-1].noise, log.credits[-1].signal))

    noise, _ = first("even", torch.ones(4).double())
    other, _ = first("uneven", torch.tensor([1.0, 2.0, 0.5, 3.0]).double())
    torch.testing.assert_close(other, noise, rtol=2e-3, atol=0)


def test_halves_never_tear_a_group():
    pictures = torch.tensor([5, 0, 2, 9, 7, 8, 1])
    first, second = split_groups(pictures, 3)
    assert first.tolist() == [5, 0, 2, 1] and second.tolist() == [9, 7, 8]
    assert [part.tolist() for part in split_groups(torch.tensor([4, 3]), 3)] == [[4, 3]]


def test_a_part_of_the_coordinates_stands_for_all(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a, b = (
        [torch.randn(64, 48, generator=generator) + 1, torch.randn(4000, generator=generator) + 1] for _ in range(2)
    )
    whole = [measure.flat(part, 1) for part in (a, b)]
    monkeypatch.setattr(measure, "LIMIT", 8 * 2000)
    stride = measure.kept_every([torch.nn.Parameter(t) for t in a], 4)
    assert stride == 5
    some = [measure.flat(part, stride) for part in (a, b)]
    assert float(some[0] @ some[1]) == pytest.approx(float(whole[0] @ whole[1]), rel=0.1)


def test_the_schedule_moves_keeps_its_total_and_is_logged(trainer):
    log = run(trainer("sd", credit=ADAPTIVE, train={"iterations": 4}))
    assert [event.iteration for event in log.credits] == [0, 1, 2, 3, 4]
    start = log.credits[0].target
    assert start == pytest.approx([sum(log.credit.native) / 4] * 4)
    for event in log.credits[1:]:
        assert sum(event.target) == pytest.approx(sum(start), rel=1e-12) and event.target != start
        assert event.measured == event.steps and min(event.noise) > 0 and len(event.signal) == 4
        assert min(event.target) >= 0.1 * sum(start) / 4 * (1 - 1e-12)


def test_flow_starts_at_the_step_length_and_every_counts_iterations(trainer):
    log = run(trainer("sd3", credit={**ADAPTIVE, "every": 2}, train={"iterations": 4}))
    first = log.credits[0]
    zeta = [target / dt for target, dt in zip(first.target, first.dt, strict=True)]
    assert zeta == pytest.approx([zeta[0]] * 4)
    assert [event.iteration for event in log.credits] == [0, 1, 3]


def test_a_reward_that_says_nothing_leaves_the_start(trainer):
    log = run(trainer("sd", reward=constant, credit=ADAPTIVE, train={"iterations": 2}))
    assert log.credits[-1].target == log.credits[0].target
    run(trainer("sd", reward=constant, output="filter", credit=ADAPTIVE, train={"filter": "zero_std"}))


def test_a_restart_goes_on_bit_for_bit(trainer):
    make = partial(trainer, "sd", credit={**ADAPTIVE, "smoothing": 0.7}, run={"checkpoint_every": 1})
    select = {"updates": 2, "select": "random", "fraction": 0.5}
    straight = make(output="straight", train={**select, "iterations": 4})
    whole = run(straight)
    run(make(train={**select, "iterations": 2}))
    resumed = make(resume=True, train={**select, "iterations": 4})
    log = run(resumed)
    assert same(weights(resumed), weights(straight))
    assert [event.target for event in log.credits] == [event.target for event in whole.credits]
    assert torch.equal(resumed.algorithm.credit.target, straight.algorithm.credit.target)


def test_signal_and_variance_of_the_probe_scale_with_the_credit(trainer):
    """Of the weighed gradient: twice the credit at a step is four times its variance there."""

    def probe(output, **credit):
        log = run(trainer("sd", output=output, credit=credit, evaluation={"credit_probe": 6}))
        event = log.gradient_share[0]
        return torch.tensor(event.variance).double(), torch.tensor(log.credit.target).double(), event

    native, weight, event = probe("native", schedule="native")
    uniform, target, _ = probe("uniform", schedule="uniform")
    torch.testing.assert_close(uniform / native, (target / weight) ** 2, rtol=2e-3, atol=0)
    assert min(event.variance) > 0 and len(event.signal) == len(event.steps) == 4
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    signal, noise = signal_and_noise(a, b, torch.ones(3), (2, 2))
    # the mean over both halves: |g|^2 = signal + noise in expectation; here the exact identity per step
    assert float(signal.sum()) == pytest.approx(float(a.sum(0) @ b.sum(0)))
    torch.testing.assert_close(((a + b) / 2).square().sum(1) - noise, (a * b).sum(1))


def test_log_ratio_quantiles(trainer):
    event = run(trainer("sd", train={"epochs": 2})).iterations[0]
    low, middle, high = (event.log_ratio_quantiles_per_step[name] for name in ("p01", "p50", "p99"))
    assert all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True)) and min(low) < 0 < max(high)
