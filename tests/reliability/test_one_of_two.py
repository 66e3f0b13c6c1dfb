"""Two processes that train together, one of them killed: the other ends too, and the run goes on bit for bit."""

from __future__ import annotations

import os
import signal
import time

import pytest

import ranks
import training

FULL = [pytest.mark.slow, pytest.mark.reliability]
# Which process is killed, and after how many lines of the log
MORE = [(0, 3), (0, 4), (0, 6), (0, 9), (0, 12), (1, 3), (1, 4), (1, 8), (1, 11)]
POINTS = [pytest.param(1, 5, marks=pytest.mark.reliability), *(pytest.param(*point, marks=FULL) for point in MORE)]


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """Two processes, not disturbed."""
    config = ranks.settings(folders, tmp_path_factory.mktemp("whole") / "run")
    assert ranks.run(2, config) == [0, 0]
    return config


@pytest.mark.parametrize(("victim", "lines"), POINTS)
def test_when_one_is_killed_the_other_ends_and_the_run_goes_on(folders, tmp_path, whole, measured, victim, lines):
    config = ranks.settings(folders, tmp_path / "run")
    processes = ranks.launch(2, ranks.train, config)
    ranks.wait_for(tmp_path / "run/events.jsonl", lines)
    os.kill(processes[victim].pid, signal.SIGKILL)
    began = time.monotonic()
    codes = ranks.finish(processes, 60)
    gone = time.monotonic() - began
    assert codes[victim] == -9 and codes[1 - victim] == 12 and gone < 60
    assert ranks.run(2, config, resume=True) == [0, 0]
    assert ranks.losses(config) == ranks.losses(whole)
    assert training.same(ranks.tuned(config, 6), ranks.tuned(whole, 6))
    place = f"process {victim} after line {lines}"
    measured("one_of_two_killed", **{place: {"both_gone_seconds": round(gone, 2), "bitwise_equal": True}})
