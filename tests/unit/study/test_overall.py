"""Ratios over several rewards: a geometric mean by seed, and no reward chosen by who succeeds at it."""

from __future__ import annotations

import math

import pytest

from pcpo.study.overall import overall
from pcpo.study.tables import overall_table


def group(reward, base, fast, model="m", label="+5 %", end=20.0):
    """Times to the lowest target by seed; runs end after 20 iterations."""
    times = {"base": base, "fast": fast}
    arms = {arm: {"times": {"iterations": dict(enumerate(of))}} for arm, of in times.items()}
    cut = {"iterations": end} if None in [*base, *fast] else None
    return {
        "model": model,
        "reward": reward,
        "baseline": "base",
        "arms": dict.fromkeys(times),
        "targets": [{"label": label, "arms": arms, "restricted_to": cut}, {"label": "+10 %", "arms": {}}],
    }


def test_the_geometric_mean_within_a_seed_and_then_over_seeds():
    halved = group("one", [4.0, 6.0, 8.0], [2.0, 3.0, 4.0])
    eighth = group("two", [8.0, 8.0, 16.0], [1.0, 1.0, 2.0], label="+2 %")
    (row,) = overall([halved, eighth])
    # every seed has the mean of log 1/2 and log 1/8, so the spread of the times does not widen the interval
    assert [row["ratio"][name] for name in ("mean", "low", "high")] == pytest.approx([0.25] * 3)
    assert row["ratio"]["n"] == 3 and row["targets"] == {"one": "+5 %", "two": "+2 %"}
    line = "| m | fast | 0.25 [0.25, 0.25] | 6 of 6, baseline 6 | one +5 %, two +2 % |"
    assert overall_table([row]).splitlines()[-1] == line


def test_opposite_ratios_come_to_one():
    (row,) = overall([group("one", [4.0] * 3, [1.0] * 3), group("two", [1.0] * 3, [4.0] * 3)])
    assert row["ratio"]["mean"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("base", "fast", "ratio", "reached"),
    [
        ([None] * 3, [5.0] * 3, 5 / 20, (6, 3)),  # at least four times as fast
        ([10.0] * 3, [None] * 3, 20 / 10, (3, 6)),
        ([None] * 3, [None] * 3, 1.0, (3, 3)),
    ],
)
def test_a_run_that_did_not_reach_it_counts_with_its_end(base, fast, ratio, reached):
    (row,) = overall([group("one", [4.0] * 3, [4.0] * 3), group("two", base, fast)])
    assert row["ratio"]["mean"] == pytest.approx(math.sqrt(ratio))
    assert (row["reached"], row["baseline"], row["runs"]) == (*reached, 6)


def test_where_there_is_nothing_to_say():
    one = group("one", [4.0] * 3, [2.0] * 3)
    assert overall([one]) == []
    assert overall([one, {**group("two", [4.0] * 3, [2.0] * 3), "targets": []}]) == []
    assert overall([one, group("two", [1.0] * 3, [1.0] * 3, model="other")]) == []
    assert overall([group(name, [None] * 3, [None] * 3) for name in ("one", "two")]) == []
    assert overall([group(name, [1.0], [2.0]) for name in ("one", "two")]) == []  # one seed is no result


def test_only_seeds_that_all_rewards_have_count():
    (row,) = overall([group("one", [4.0] * 4, [2.0] * 4), group("two", [4.0] * 3, [2.0, 2.0, 1.0])])
    assert row["ratio"]["n"] == 3 and row["runs"] == 6
    assert row["ratio"]["mean"] == pytest.approx(math.exp((5 * math.log(0.5) + math.log(0.25)) / 6))
