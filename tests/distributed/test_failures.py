"""A process that fails takes the others with it, cleanly; what was saved goes on, bit for bit."""

from __future__ import annotations

import os
import signal

import pytest

import ranks
import training
from pcpo.trainer.checkpoint import list_checkpoints
from pcpo.trainer.config import Config
from pcpo.trainer.distributed import collective_timeout


def test_a_reward_that_fails_in_one_process_ends_all_with_its_exit_code(folders, tmp_path):
    config = ranks.settings(folders, tmp_path / "run")
    assert ranks.run(2, config, reward=ranks.fails_in_the_second) == [5, 5]
    first, second = ranks.said(config)
    assert "process 1, reward" in first and "no disk left" in first and "no disk left" in second


def test_a_value_that_is_not_finite_in_one_process_is_left_out_in_all(folders, tmp_path):
    config = ranks.settings(folders, tmp_path / "run", train={"on_nonfinite": "skip"})
    assert ranks.run(2, config, reward=ranks.no_number_in_the_second) == [8, 8]  # the third in a row stops the run
    assert "3 updates in a row were left out" in ranks.said(config)[0]
    assert ranks.losses(config) == [None, None] and training.same(ranks.tuned(config, 1), ranks.tuned(config, 2))


def test_a_signal_to_one_process_saves_and_ends_all(folders, tmp_path):
    config = ranks.settings(folders, tmp_path / "run", iterations=500)
    processes = ranks.launch(2, ranks.train, config)
    ranks.wait_for(tmp_path / "run/events.jsonl", 6)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert ranks.finish(processes) == [143, 143]
    done = len(ranks.losses(config))
    assert int(list_checkpoints(tmp_path / "run/checkpoints")[-1].name) == done


def test_a_checkpoint_goes_on_with_another_number_of_processes(folders, tmp_path):
    whole = ranks.settings(folders, tmp_path / "whole")
    assert ranks.run(2, whole) == [0, 0]
    config = ranks.settings(folders, tmp_path / "run", iterations=3)
    assert ranks.run(2, config) == [0, 0]
    config = ranks.settings(folders, tmp_path / "run")
    assert ranks.run(1, config, resume=True) == [0]
    assert ranks.losses(config)[:3] == ranks.losses(whole)[:3]
    assert ranks.losses(config) == pytest.approx(ranks.losses(whole), abs=1e-4)


@pytest.mark.parametrize("deadline", [10.0, 50.0, 5000.0])
def test_processes_wait_longer_for_each_other_than_rewards_may_take(deadline):
    remote = {"name": "http", "options": {"url": "http://127.0.0.1:1", "deadline": deadline}}
    config = Config.model_validate(
        {"reward": [remote, {**remote, "name": "judge"}], "evaluation": {"rewards": [remote]}}
    )
    assert collective_timeout(config).total_seconds() > max(1800, 3 * deadline) - 1
    assert collective_timeout(Config.model_validate({})).total_seconds() >= 1800
