from __future__ import annotations

import json

import pytest
import torch

from pcpo.advantages import RunningStats
from pcpo.errors import CheckpointError, ConfigError


def call(stats, prompts, rewards, valid=None, **extra):
    rewards = torch.tensor(rewards)
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return stats(rewards, valid, prompts, **extra)


def test_batch_statistics_until_the_prompt_has_enough():
    stats = RunningStats(buffer_size=4, min_count=3)
    first = call(stats, ["a", "b"], [[1.0, 2.0], [3.0, 6.0]])
    batch = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    expected = (batch - batch.mean()) / (batch.std(correction=0) + 1e-4)
    torch.testing.assert_close(first.flatten(), expected.float())
    second = call(stats, ["a"], [[3.0, 4.0]])
    own = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    expected = (own[2:] - own.mean()) / (own.std(correction=0) + 1e-4)
    torch.testing.assert_close(second[0], expected.float())


def test_buffer_keeps_the_last_rewards_of_each_prompt():
    stats = RunningStats(buffer_size=3, min_count=1)
    call(stats, ["a"], [[1.0, 2.0]])
    call(stats, ["a", "b"], [[3.0, 4.0], [9.0, 9.0]])
    assert stats.state_dict() == {"a": [2.0, 3.0, 4.0], "b": [9.0, 9.0]}


def test_a_group_of_equal_rewards_can_beat_its_past():
    stats = RunningStats(buffer_size=8, min_count=1)
    assert call(stats, ["a"], [[0.1, 0.1, 0.1]]).abs().sum() == 0
    assert (call(stats, ["a"], [[1.0, 1.0, 1.0]]) > 0).all()


def test_abstained_pictures_are_not_kept():
    stats = RunningStats(buffer_size=8, min_count=1)
    out = call(stats, ["a"], [[1.0, torch.nan, 3.0]], [[True, False, True]])
    assert out[0, 1] == 0 and out.isfinite().all()
    assert stats.state_dict() == {"a": [1.0, 3.0]}
    assert call(RunningStats(), ["a"], [[1.0, 2.0]], [[False, False]]).abs().sum() == 0


def test_clip():
    stats = RunningStats(buffer_size=128, min_count=1)
    call(stats, ["a"], [[0.0] * 100])
    assert call(stats, ["a"], [[1.0]]).item() == 5
    assert call(stats, ["a"], [[2.0]], clip=1.0).item() == 1


def test_state_survives_json():
    one, two = RunningStats(4, 2), RunningStats(4, 2)
    call(one, ["a", "b"], [[1.0, 2.5], [0.1, 0.7]])
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert torch.equal(call(one, ["b"], [[0.3, 0.4]]), call(two, ["b"], [[0.3, 0.4]]))


@pytest.mark.parametrize("state", [{"a": ["x"]}, {"a": [None]}, {"a": 3.0}, []])
def test_broken_state(state):
    with pytest.raises(CheckpointError, match="list of rewards"):
        RunningStats().load_state_dict(state)


@pytest.mark.parametrize("size, count", [(4, 5), (4, 0)])
def test_sizes_are_checked(size, count):
    with pytest.raises(ConfigError, match="min_count"):
        RunningStats(size, count)
