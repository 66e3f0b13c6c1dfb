"""Statistics against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcpo.study.stats import (
    compare_times,
    crossing,
    estimate,
    paired_difference,
    restricted,
    student_quantile,
)


@given(
    st.lists(st.tuples(st.floats(0.5, 5), st.floats(-3, 3)), min_size=2, max_size=8),
    st.floats(-10, 10),
)
def test_interpolation_is_exact_on_piecewise_linear_curves(steps, target):
    x, y = np.cumsum([s[0] for s in steps]), np.cumsum([s[1] for s in steps])
    found = crossing(x.tolist(), y.tolist(), target)
    if found is None:
        assert y.max() < target
        return
    # on the curve at the target, unless it starts above; and below the target everywhere before
    assert np.interp(found, x, y) == pytest.approx(max(target, y[0]), abs=1e-9)
    before = np.linspace(x[0], found, 50)[:-1]
    assert found == x[0] or (np.interp(before, x, y) <= target + 1e-9).all()


def test_crossing_by_hand():
    assert crossing([0, 2, 4, 6], [1.0, 3.0, 2.0, 6.0], 2.5) == 1.5
    assert crossing([0, 2, 4, 6], [1.0, 3.0, 2.0, 6.0], 4.0) == 5.0
    assert crossing([0, 10, 30], [0.0, 0.0, 1.0], 0.25) == 15.0
    assert crossing([0, 2], [1.0, 3.0], 3.0) == 2.0 and crossing([0, 2], [1.0, 3.0], 3.1) is None
    assert crossing([4, 5], [1.0, 0.0], 1.0) == 4.0 and crossing([], [], 1.0) is None


def test_a_run_that_never_arrives_counts_up_to_the_horizon():
    assert [restricted(t, 10.0) for t in (None, 12.0, 10.0, 4.0)] == [10.0, 10.0, 10.0, 4.0]
    found = compare_times({0: 4.0, 1: 6.0, 2: 8.0, 3: None, 9: 1.0}, {0: 8.0, 1: None, 2: 8.0, 3: None, 7: 1.0}, 10.0)
    assert (found.both, found.only_arm, found.only_baseline, found.neither) == (2, 1, 0, 1)
    # geometric mean of 1/2 and 1; two pairs have no interval
    assert found.ratio.mean == pytest.approx(math.sqrt(0.5)) and found.ratio.low is None and found.ratio.n == 2
    # 1/2, 6/10 and 1: a baseline that would have needed more than 10 makes this at least the true ratio
    assert found.bound.mean == pytest.approx(0.3 ** (1 / 3)) and found.bound.n == 3
    # -4, -4, 0, 0: a censored baseline shortens a difference, it never invents one
    assert found.difference.mean == -2.0 and found.difference.n == 4


def test_ratios_are_symmetric_and_paired():
    a, b = {s: 3.0 + s for s in range(5)}, {s: 2.0 * (3.0 + s) for s in range(5)}
    there, back = compare_times(a, b, 99.0).ratio, compare_times(b, a, 99.0).ratio
    # every pair has the same ratio, so however the seeds differ there is no spread
    assert (there.mean, there.low, there.high) == pytest.approx((0.5, 0.5, 0.5))
    assert there.mean * back.mean == pytest.approx(1.0)
    assert paired_difference(a, {**b, 77: 0.0}).mean == -5.0


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_seeds_have_no_interval_and_one_has_no_mean(n):
    found = estimate([1.0] * n)
    assert (found.mean, found.low, found.high, found.n) == (1.0 if n == 2 else None, None, None, n)


def test_an_interval_is_reproducible_and_moves_with_its_data():
    data = [1.0, 4.0, 2.0, 8.0, 3.0]
    one, other = estimate(data), estimate([10 * x - 3 for x in data])
    assert one == estimate(data) and one.low < one.mean < one.high
    assert (other.mean, other.low, other.high) == pytest.approx(
        tuple(10 * v - 3 for v in (one.mean, one.low, one.high))
    )
    assert estimate(data, math.exp).high == pytest.approx(math.exp(one.high))
    three = estimate([5.0, 1.0, 2.0])
    assert (three.low, three.high) == (1.0, 5.0)


@pytest.mark.parametrize(
    "df, value", [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)]
)
def test_student_quantiles_are_those_of_the_tables(df, value):
    assert student_quantile(df) == pytest.approx(value, rel=1e-5)


def test_student_quantile_other_level():
    assert student_quantile(2, 0.99) == pytest.approx(9.92484, rel=1e-5)
    assert student_quantile(1, 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize("n, least", [(5, 0.905), (8, 0.92)])
def test_coverage_on_normal_data(n, least):
    """About 93 % (n = 5) and 94 % (n = 8) hold the truth; of plain percentile intervals 85 % and 88 %."""
    data = np.random.default_rng(0).normal(3.0, 2.0, (1500, n))
    held = [found.low <= 3.0 <= found.high for found in map(estimate, data.tolist())]
    assert least < np.mean(held) < 0.975
