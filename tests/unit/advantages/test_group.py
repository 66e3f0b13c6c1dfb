from __future__ import annotations

import pytest
import torch

from pcpo.advantages import ADVANTAGES, global_std, grpo, zero_std_groups, zero_std_mask

REWARDS = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.1, 0.1, 0.1, 0.1], [5.0, -5.0, 7.0, 0.0]])
ALL = torch.ones_like(REWARDS, dtype=torch.bool)


def test_grpo_is_the_naive_loop():
    out = grpo(REWARDS, ALL)
    for row, group in zip(out, REWARDS.double(), strict=True):
        expected = (group - group.mean()) / (group.std(correction=0) + 1e-4)
        torch.testing.assert_close(row, expected.float())
    assert out.dtype == torch.float32


def test_global_std_shares_one_scale():
    out = global_std(REWARDS, ALL)
    r = REWARDS.double()
    expected = (r - r.mean(1, keepdim=True)) / (r.std(correction=0) + 1e-4)
    torch.testing.assert_close(out[[0, 2]], expected[[0, 2]].float())


@pytest.mark.parametrize("function", [grpo, global_std])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6, -7.7])
def test_equal_rewards_are_exactly_zero(function, value):
    rewards = torch.cat([torch.full((1, 3), value), torch.tensor([[1.0, 2.0, 3.0]])])
    out = function(rewards, torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(out[0], torch.zeros(3)) and (out[1] != 0).any()


@pytest.mark.parametrize("function", [grpo, global_std])
def test_abstained_pictures_do_not_count(function):
    valid = ALL.clone()
    valid[0, 3] = False
    spoiled = REWARDS.clone()
    spoiled[0, 3] = torch.nan
    out = function(spoiled, valid)
    assert out[0, 3] == 0 and out.isfinite().all()
    other = spoiled.clone()
    other[0, 3] = 1e9
    assert torch.equal(function(other, valid), out)
    torch.testing.assert_close(out[0, :3].sum(), torch.tensor(0.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("function", [grpo, global_std])
def test_groups_with_too_few_valid_pictures_are_zero(function):
    valid = torch.tensor([[True, False], [False, False], [True, True]])
    rewards = torch.tensor([[3.0, torch.nan], [torch.nan, torch.nan], [1.0, 2.0]])
    out = function(rewards, valid)
    assert out[:2].abs().sum() == 0 and (out[2] != 0).all()
    assert zero_std_mask(rewards, valid).tolist() == [True, True, False]
    nobody = torch.zeros_like(valid)
    assert function(rewards, nobody).abs().sum() == 0 and zero_std_groups(rewards, nobody) == 3


def test_zero_std_groups():
    assert zero_std_groups(REWARDS, ALL) == 1


def test_clip():
    rewards = torch.tensor([[0.0] * 99 + [1.0]])
    valid = torch.ones_like(rewards, dtype=torch.bool)
    assert grpo(rewards, valid).max() == 5
    assert grpo(rewards, valid, clip=2.0).max() == 2


def test_registry():
    assert set(ADVANTAGES) == {"grpo", "global", "running"}
    assert ADVANTAGES["running"].stateful and not ADVANTAGES["grpo"].stateful
