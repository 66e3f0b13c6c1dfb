"""Ratios over several rewards: a geometric mean by seed, over rewards whose lowest target is always reached."""

from __future__ import annotations

import math

import pytest

from pcpo.study.overall import overall
from pcpo.study.tables import overall_table


def group(reward, base, fast, model="m", label="+5 %"):
    """Times to the lowest target by seed."""
    times = {"base": base, "fast": fast}
    arms = {arm: {"times": {"iterations": dict(enumerate(of))}} for arm, of in times.items()}
    return {
        "model": model,
        "reward": reward,
        "baseline": "base",
        "arms": dict.fromkeys(times),
        "targets": [{"label": label, "arms": arms}, {"label": "+10 %", "arms": {}}],
    }


def test_the_geometric_mean_within_a_seed_and_then_over_seeds():
    halved = group("one", [4.0, 6.0, 8.0], [2.0, 3.0, 4.0])
    eighth = group("two", [8.0, 8.0, 16.0], [1.0, 1.0, 2.0], label="+2 %")
    (row,) = overall([halved, eighth])
    # every seed has the mean of log 1/2 and log 1/8, so the spread of the times does not widen the interval
    assert [row["ratio"][name] for name in ("mean", "low", "high")] == pytest.approx([0.25] * 3)
    assert row["ratio"]["n"] == 3 and row["targets"] == {"one": "+5 %", "two": "+2 %"}
    assert overall_table([row]).splitlines()[-1] == "| m | fast | 0.25 [0.25, 0.25] | one +5 %, two +2 % |"


def test_opposite_ratios_come_to_one():
    (row,) = overall([group("one", [4.0] * 3, [1.0] * 3), group("two", [1.0] * 3, [4.0] * 3)])
    assert row["ratio"]["mean"] == pytest.approx(1.0)


def test_a_reward_that_a_run_never_reached_does_not_count():
    whole = [group(name, [4.0, 4.0, 4.0], [2.0, 1.0, 4.0]) for name in ("one", "two")]
    for base, fast in (([1.0, None, 1.0], [9.0] * 3), ([1.0] * 3, [9.0, 9.0, None])):
        (row,) = overall([*whole, group("three", base, fast)])
        assert row["ratio"]["mean"] == pytest.approx(0.5) and set(row["targets"]) == {"one", "two"}
    assert overall([whole[0], group("three", [None] * 3, [1.0] * 3)]) == []
    assert overall([group(name, [1.0], [2.0]) for name in ("one", "two")]) == []  # one seed is no result
    assert overall([whole[0], {**whole[1], "targets": []}]) == []
    assert overall([whole[0], group("two", [1.0] * 3, [1.0] * 3, model="other")]) == []


def test_only_seeds_that_all_rewards_have_count():
    (row,) = overall([group("one", [4.0] * 4, [2.0] * 4), group("two", [4.0] * 3, [2.0, 2.0, 1.0])])
    assert row["ratio"]["n"] == 3
    assert row["ratio"]["mean"] == pytest.approx(math.exp((5 * math.log(0.5) + math.log(0.25)) / 6))
