"""A process that fails takes the others with it, cleanly; what was saved goes on, bit for bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ranks
import training
from pcpo.observe.events import read_events
from pcpo.trainer.checkpoint import list_checkpoints
from pcpo.trainer.config import Config
from pcpo.trainer.distributed import collective_timeout


def settings(folders, output, iterations=6, **changes):
    base = {
        "train": {"iterations": iterations},
        "evaluation": {"every": 100, "num_prompts": 1},
        "run": {"checkpoint_every": 1, "keep_checkpoints": 9},
    }
    return training.settings("sd", folders["sd"], output, **training.merge(base, changes))


def run(world, config, resume=False, reward=training.reddish):
    return ranks.finish(ranks.launch(world, ranks.train, config, resume, reward))


def losses(config):
    return [event.loss for event in read_events(Path(config["run"]["output"]) / "events.jsonl").iterations]


def tuned(config, iteration):
    return load_file(Path(config["run"]["output"]) / f"checkpoints/{iteration:06d}/weight.safetensors")


def test_a_reward_that_fails_in_one_process_ends_all_with_its_exit_code(folders, tmp_path):
    config = settings(folders, tmp_path / "run")
    assert run(2, config, reward=ranks.fails_in_the_second) == [5, 5]
    first, second = ranks.said(config)
    assert "process 1, reward" in first and "no disk left" in first and "no disk left" in second


def test_a_value_that_is_not_finite_in_one_process_is_left_out_in_all(folders, tmp_path):
    config = settings(folders, tmp_path / "run", train={"on_nonfinite": "skip"})
    assert run(2, config, reward=ranks.no_number_in_the_second) == [8, 8]  # the third in a row stops the run
    assert "3 updates in a row were left out" in ranks.said(config)[0]
    assert losses(config) == [None, None] and training.same(tuned(config, 1), tuned(config, 2))


def test_a_signal_to_one_process_saves_and_ends_all(folders, tmp_path):
    config = settings(folders, tmp_path / "run", iterations=500)
    processes = ranks.launch(2, ranks.train, config)
    ranks.wait_for(tmp_path / "run/events.jsonl", 6)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert ranks.finish(processes) == [143, 143]
    done = len(losses(config))
    assert int(list_checkpoints(tmp_path / "run/checkpoints")[-1].name) == done


MORE = [(0, 3), (0, 4), (0, 6), (0, 9), (0, 12), (1, 3), (1, 4), (1, 8), (1, 11)]
POINTS = [(1, 5), *(pytest.param(*point, marks=pytest.mark.slow) for point in MORE)]


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """Two processes, not disturbed."""
    config = settings(folders, tmp_path_factory.mktemp("whole") / "run")
    assert run(2, config) == [0, 0]
    return config


@pytest.mark.parametrize(("victim", "lines"), POINTS)
def test_when_one_of_two_is_killed_the_other_ends_and_the_run_goes_on_bitwise(folders, tmp_path, whole, victim, lines):
    config = settings(folders, tmp_path / "run")
    processes = ranks.launch(2, ranks.train, config)
    ranks.wait_for(tmp_path / "run/events.jsonl", lines)
    os.kill(processes[victim].pid, signal.SIGKILL)
    began = time.monotonic()
    codes = ranks.finish(processes, 60)
    assert codes[victim] == -9 and codes[1 - victim] == 12 and time.monotonic() - began < 60
    assert run(2, config, resume=True) == [0, 0]
    assert losses(config) == losses(whole)
    assert training.same(tuned(config, 6), tuned(whole, 6))


def test_a_checkpoint_goes_on_with_another_number_of_processes(folders, tmp_path, whole):
    config = settings(folders, tmp_path / "run", iterations=3)
    assert run(2, config) == [0, 0]
    config = settings(folders, tmp_path / "run")
    assert run(1, config, resume=True) == [0]
    assert losses(config)[:3] == losses(whole)[:3]
    assert losses(config) == pytest.approx(losses(whole), abs=1e-4)


@pytest.mark.parametrize("deadline", [10.0, 50.0, 5000.0])
def test_processes_wait_longer_for_each_other_than_rewards_may_take(deadline):
    remote = {"name": "http", "options": {"url": "http://127.0.0.1:1", "deadline": deadline}}
    config = Config.model_validate(
        {"reward": [remote, {**remote, "name": "judge"}], "evaluation": {"rewards": [remote]}}
    )
    assert collective_timeout(config).total_seconds() > max(1800, 3 * deadline) - 1
    assert collective_timeout(Config.model_validate({})).total_seconds() >= 1800
