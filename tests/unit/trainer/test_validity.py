"""The limit on pictures that a reward leaves out."""

import pytest
import torch

from pcpo.errors import RewardError
from pcpo.trainer.validity import ValidityGuard
from pcpo.types import RewardResult
from training import reddish


def mask(invalid, size=10):
    return torch.arange(size) >= invalid


def test_one_bad_iteration_is_forgiven_and_a_window_of_them_is_not():
    guard = ValidityGuard(0.05, 20)
    guard.check(mask(9), "reward x")  # 9 of the 10 that a whole window may lose
    guard.check(mask(1), "reward x")
    with pytest.raises(
        RewardError, match=r"left out 11 of the last 30 pictures \(37% in 3 iterations\), more than 5.0%"
    ):
        guard.check(mask(1), "reward x")


def test_what_leaves_the_window_is_forgotten():
    guard = ValidityGuard(0.05, 4)
    for _ in range(10):
        for invalid in (2, 0, 0, 0):
            guard.check(mask(invalid), "reward x")
    with pytest.raises(RewardError):
        guard.check(mask(1), "reward x")
        guard.check(mask(2), "reward x")


@pytest.mark.parametrize("share, good", [(0.0, 0), (1.0, 10)])
def test_none_and_all(share, good):
    guard = ValidityGuard(share, 3)
    for _ in range(9):
        guard.check(mask(good), "reward x")
    if share == 0:
        with pytest.raises(RewardError):
            guard.check(mask(1), "reward x")


def test_a_run_stops_with_counts_and_a_checkpoint(trainer):
    def abstains(images, prompts, metadata):
        valid = torch.ones(len(images), dtype=torch.bool)
        valid[0] = len(images) < 6  # evaluations have two pictures
        return RewardResult(reddish(images, prompts, metadata), valid)

    limit = {"iterations": 9, "max_invalid": 0.1, "invalid_window": 4}  # 2.4 of 24 pictures
    job = trainer(reward=abstains, train=limit)
    with pytest.raises(RewardError, match="left out 3 of the last 18 pictures"):
        job.train()
    assert [path.name for path in (job.folder / "checkpoints").iterdir()] == ["000002"]
    job = trainer(reward=abstains, train={**limit, "max_invalid": 1.0, "iterations": 3}, resume=True)
    assert job.state.iteration == 2 and job.train().iterations == 3
