"""Laws of the measured credit schedule, on a linear-Gaussian problem whose optimum is known."""

from __future__ import annotations

import pytest
import torch

from pcpo.credit.adaptive import AdaptiveCredit, bounded, shrink, signal_and_noise
from pcpo.errors import CheckpointError

WIDTH, PICTURES = 40, 24
NOISE = torch.tensor([1.0, 1.4, 1.7, 1.7, 2.0, 2.6, 3.6, 5.3, 9.0, 28.0], dtype=torch.float64)
EQUAL = torch.full((10,), 0.1, dtype=torch.float64)


def gradients(size, noise, count, generator):
    """Mean gradients [S, WIDTH] over `count` pictures: size_t along one direction, variance noise_t of PICTURES."""
    h = torch.randn(len(size), WIDTH, generator=generator, dtype=torch.float64)
    h *= (noise * PICTURES / count / WIDTH).sqrt()[:, None]
    h[:, 0] += size
    return h


def learn(adaptive, size, noise, rounds, seed=0, scale=1.0):
    """Measure `rounds` times, each with the credit in force, as training does."""
    generator = torch.Generator().manual_seed(seed)
    every = torch.arange(len(size))
    for _ in range(rounds):
        halves = [scale * gradients(size, noise, PICTURES // 2, generator) for _ in range(2)]
        adaptive.observe(every, *signal_and_noise(*halves, adaptive.weights(), (PICTURES // 2, PICTURES // 2)))
    return adaptive.weights()


def snr(credit, size, noise):
    """|sum c mu|^2 / sum c^2 v for parallel mu."""
    return float((credit @ size) ** 2 / (credit**2 @ noise))


@pytest.mark.parametrize("counts", [(12, 12), (16, 8), (1, 23)])
def test_estimates_are_unbiased(counts):
    generator = torch.Generator().manual_seed(0)
    size, noise = torch.tensor([0.5, 1.0, -0.7, 0.0]).double(), torch.tensor([1.0, 4.0, 2.0, 3.0]).double()
    credit = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    draws = [
        signal_and_noise(*(gradients(size, noise, n, generator) for n in counts), credit, counts) for _ in range(4000)
    ]
    for column, truth in zip(zip(*draws, strict=True), (size * (credit @ size), noise), strict=True):
        values = torch.stack(column)
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - truth).abs() < 4 * error).all()


def test_the_ratio_of_signal_and_noise_is_largest_at_the_formula():
    generator = torch.Generator().manual_seed(0)
    size = torch.rand(10, generator=generator).double()
    best = snr(size / NOISE, size, NOISE)
    assert best == pytest.approx(float((size**2 / NOISE).sum()), rel=1e-12)
    for _ in range(50):
        other = size / NOISE * (1 + 0.3 * torch.randn(10, generator=generator, dtype=torch.float64))
        assert snr(other, size, NOISE) <= best


def test_power_iteration_ends_at_the_leading_eigenvector_when_the_directions_differ():
    generator = torch.Generator().manual_seed(1)
    mu = torch.rand(6, 8, generator=generator).double()
    noise = torch.rand(6, generator=generator).double() + 0.1
    half = noise.sqrt()
    leading = torch.linalg.eigh((mu @ mu.T) / half[:, None] / half)[1][:, -1].abs() / half
    credit = torch.ones(6).double()
    for _ in range(60):
        credit = signal_and_noise(mu, mu, credit, (4, 4))[0] / noise
        credit /= credit.sum()
    torch.testing.assert_close(credit, leading / leading.sum(), rtol=1e-6, atol=0)


def test_it_comes_to_the_optimum():
    size = torch.tensor([0.2, 0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.4, 0.2, 0.2]).double()
    learnt = learn(AdaptiveCredit(EQUAL, smoothing=0.99, floor=1e-3), size, NOISE, 400)
    best = snr(size / NOISE, size, NOISE)
    assert snr(learnt, size, NOISE) > 0.97 * best > 1.5 * 0.97 * snr(EQUAL, size, NOISE)


@pytest.mark.parametrize("rounds, share", [(4, 0.9), (16, 0.95)])
def test_shrinking_pays_while_the_signal_is_drowned(rounds, share):
    """At a signal-to-noise ratio within the error bars of a real run, 0.01: means over 40 seeds, none far off."""
    size = torch.full((10,), 0.045).double()
    best = snr(1 / NOISE, size, NOISE)
    assert snr(EQUAL, size, NOISE) < 0.41 * best < 0.01
    shrunk, raw = [], []
    for seed in range(40):
        adaptive = AdaptiveCredit(EQUAL)
        shrunk.append(snr(learn(adaptive, size, NOISE, rounds, seed), size, NOISE) / best)
        raw.append(snr(bounded(adaptive.signal.clamp(min=0) / adaptive.noise, 0.1, EQUAL.sum()), size, NOISE) / best)
    assert sum(shrunk) / 40 > share and min(shrunk) > 0.6
    assert sum(raw) / 40 < 0.75


def test_steps_that_are_alike_stay_alike():
    alike = torch.full((10,), 2.0).double()
    for size in (0.0, 0.05, 1.0):
        learnt = learn(AdaptiveCredit(EQUAL, smoothing=0.98), torch.full((10,), size).double(), alike, 60)
        assert float((learnt - EQUAL).abs().max()) < 0.035


def test_floor_total_and_sign_hold_at_every_measurement():
    start = torch.tensor([0.5, 1.0, 2.0, 4.0]).double()
    size, noise = torch.tensor([1.0, -1.0, 0.01, 1.0]).double(), torch.tensor([1e-6, 1.0, 1e3, 1.0]).double()
    adaptive = AdaptiveCredit(start, smoothing=0.5, floor=0.2)
    assert torch.equal(adaptive.weights(), start)
    for round_ in range(30):
        weights = learn(adaptive, size, noise, 1, seed=round_)
        assert weights.isfinite().all() and float(weights.sum()) == pytest.approx(7.5, rel=1e-12)
        assert (weights >= 0.2 * 7.5 / 4 * (1 - 1e-12)).all()


def test_the_start_gives_way_as_measurements_come():
    size = torch.ones(4).double()
    start = torch.tensor([1.0, 1.0, 1.0, 5.0]).double()
    distance = [
        float((learn(AdaptiveCredit(start), size, torch.ones(4).double() * 1e-3, rounds) - 2).abs().max())
        for rounds in (0, 1, 3, 9)
    ]
    assert distance == pytest.approx([3, 1.5, 0.75, 0.3], rel=0.15)  # 1 / (n + 1) of it is left


@pytest.mark.parametrize(
    "signal, noise",
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([0.0, 0.0, 0.0], [1.0, 1.0, 0.0]),
        ([-1.0, -2.0, -1.0], [1.0, 1.0, 1.0]),
        ([1.0, 0.0, -1.0], [1.0, 1e-30, 1e30]),
    ],
)
def test_degenerate_measurements_give_finite_weights(signal, noise):
    adaptive = AdaptiveCredit(torch.tensor([1.0, 2.0, 3.0]).double())
    for _ in range(3):
        adaptive.observe(torch.arange(3), torch.tensor(signal).double(), torch.tensor(noise).double())
        weights = adaptive.weights()
        assert weights.isfinite().all() and (weights > 0).all()
        assert float(weights.sum()) == pytest.approx(6, rel=1e-12)
    if not any(noise):
        assert torch.equal(weights, adaptive.start)


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_the_scale_of_the_gradient_does_not_matter(scale):
    size = torch.linspace(0.1, 0.5, 10).double()
    one = learn(AdaptiveCredit(EQUAL), size, NOISE, 12)
    torch.testing.assert_close(learn(AdaptiveCredit(EQUAL), size, NOISE, 12, scale=scale), one, rtol=1e-9, atol=0)


def test_shrink_between_its_limits():
    signal, error = torch.tensor([1.0, 2.0, 6.0]).double(), torch.ones(3).double()
    torch.testing.assert_close(shrink(signal, 1e-9 * error), signal, rtol=1e-6, atol=0)  # exact data: as it is
    torch.testing.assert_close(shrink(signal, 1e3 * error), torch.full_like(signal, (1e3 / 3) ** 0.5))  # none: alike
    # between: towards the mean of 3 by 1 / (1 + tau^2), tau^2 = (14 - 2 - 2 * sqrt(4)) / 2
    torch.testing.assert_close(shrink(signal, error), 3 + 4 / 5 * (signal - 3), rtol=1e-12, atol=0)
    torch.testing.assert_close(shrink(signal, 2.5 * error), torch.full_like(signal, 3.0))  # 14 / 2.5 < 6: alike


def test_steps_measured_now_and_then_keep_their_total():
    start = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    adaptive = AdaptiveCredit(start)
    adaptive.observe(torch.tensor([1, 2]), torch.ones(2).double(), torch.tensor([1.0, 4.0]).double())
    weights = adaptive.weights()
    assert torch.equal(weights[[0, 3]], start[[0, 3]]) and float(weights.sum()) == pytest.approx(10, rel=1e-12)
    assert weights[1] > start[1]


def test_its_state_survives_as_json():
    import json

    adaptive = AdaptiveCredit(EQUAL)
    weights = learn(adaptive, NOISE.sqrt() / 7, NOISE, 7)
    other = AdaptiveCredit(EQUAL)
    other.load_state_dict(json.loads(json.dumps(adaptive.state_dict())))
    assert torch.equal(other.weights(), weights)
    with pytest.raises(CheckpointError, match="of 9 steps"):
        AdaptiveCredit(EQUAL[:9]).load_state_dict(adaptive.state_dict())
