"""Advantages relative to the group of pictures of one prompt. Rewards and advantages are [P, G]."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-4


def grpo(rewards: Tensor, valid: Tensor, clip: float = 5.0) -> Tensor:
    """(R - mean_group) / (std_group + 1e-4), clipped to +-clip (2402.03300); population std, [P, G] float32.

    valid [P, G] bool: a picture on which the reward abstained has advantage 0 and enters no statistic. A
    group whose rewards are all equal has advantage exactly 0.
    """
    mean, var = _group_moments(rewards, valid)
    return _normalise(rewards, valid, mean, var.sqrt(), clip)


def global_std(rewards: Tensor, valid: Tensor, clip: float = 5.0) -> Tensor:
    """(R - mean_group) / (std_batch + 1e-4), clipped: Flow-GRPO's option (2505.05470); otherwise as grpo."""
    mean, _ = _group_moments(rewards, valid)
    kept = rewards.double()[valid]
    std = kept.std(correction=0) if len(kept) else rewards.new_zeros((), dtype=torch.float64)
    return _normalise(rewards, valid, mean, std, clip)


def standardised(rewards: Tensor, valid: Tensor) -> Tensor:
    """(R - mean_group) / std_group, exactly: no epsilon and no clip, [P, G] float64; 0 where grpo gives 0.

    Without the epsilon it does not change when R is scaled or shifted, however small its spread.
    """
    mean, var = _group_moments(rewards, valid)
    dead = ~valid | zero_std_mask(rewards, valid)[:, None]
    return ((rewards.double() - mean) / var.sqrt()).masked_fill(dead, 0)


def zero_std_mask(rewards: Tensor, valid: Tensor) -> Tensor:
    """True [P] for groups that teach nothing: all valid rewards equal, or fewer than two of them."""
    low = rewards.masked_fill(~valid, torch.inf).amin(1)
    high = rewards.masked_fill(~valid, -torch.inf).amax(1)
    return low >= high


def zero_std_groups(rewards: Tensor, valid: Tensor) -> int:
    """How many groups teach nothing (`zero_std_mask`)."""
    return int(zero_std_mask(rewards, valid).sum())


def _group_moments(rewards: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance [P, 1] float64 of the valid rewards; 0 for a group that has none."""
    r, n = rewards.double(), valid.sum(1, keepdim=True).clamp(min=1)
    mean = r.masked_fill(~valid, 0).sum(1, keepdim=True) / n
    return mean, (r - mean).masked_fill(~valid, 0).square().sum(1, keepdim=True) / n


def _normalise(rewards: Tensor, valid: Tensor, mean: Tensor, std: Tensor, clip: float) -> Tensor:
    advantage = ((rewards.double() - mean) / (std + EPS)).clamp(-clip, clip)
    # the mean of equal numbers can differ from them by a rounding, so such groups are set to 0
    dead = ~valid | zero_std_mask(rewards, valid)[:, None]
    return advantage.masked_fill(dead, 0).float()
