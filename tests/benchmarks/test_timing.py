"""benchmarks/timing.py: turns, medians and spread."""

from __future__ import annotations

import pytest

import timing


def test_sides_run_in_turn_and_warm_up_is_left_out():
    seen = []
    times = timing.interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, repeats=3, warm_up=2)
    assert "".join(seen) == "ab" * 5
    assert all(len(values) == 3 for clocks in times.values() for values in clocks.values())


def test_ratios_are_of_medians_with_the_spread_of_turns():
    times = {"a": {"wall": [3.0, 2.0, 9.0]}, "b": {"wall": [1.0, 2.0, 3.0]}}
    assert timing.ratio(times, "a", "b", "wall") == {"ratio": 1.5, "min": 1.0, "max": 3.0}
    assert timing.summary(times)["a"]["wall"] == {"median": 3.0, "min": 2.0, "max": 9.0}


def test_a_straight_line_is_linear_and_a_parabola_is_not():
    import scaling

    assert scaling.linearity([1, 2, 4], [3, 5, 9]) == (pytest.approx(0, abs=1e-9), pytest.approx(0.2))
    assert scaling.linearity([1, 2, 4], [1, 4, 16])[0] > 0.2


def test_what_a_committed_file_begins_with():
    found = timing.header("cost", threads=1)
    assert found["what"] == "cost" and found["threads"] == 1 and found["environment"]["torch"]
