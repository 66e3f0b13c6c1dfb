"""Surrogate losses of one step: (log_ratio [N], advantage [N], clip_range) -> loss [N], not reduced.

A = advantage, xi = clip_range. The clipped ones pass the gradient exactly where `inside_clip` says so, by a
`where` and not by max(): two rounded products can tie, and max() then halves the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_EXPONENT = 20.0


def ratio(log_ratio: Tensor) -> Tensor:
    """rho = exp(log rho). The exponent is clamped at 20: beyond, rho stays at 4.9e8 and has no gradient."""
    return torch.exp(log_ratio.clamp(max=MAX_EXPONENT))


def inside_clip(value: Tensor, advantage: Tensor, bound: Tensor) -> Tensor:
    """True [N] where the update may go on: value < bound if A > 0, value > bound if A < 0; False if A = 0."""
    return advantage.sign() * (bound - value) > 0


def ppo_clip(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - xi, 1 + xi)) (1707.06347)."""
    rho, bound = ratio(log_ratio), 1 + clip_range * advantage.sign()
    return -advantage * torch.where(inside_clip(rho, advantage, bound), rho, bound)


def hinge(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """max(0, xi |A| - A (rho - 1)): the gradient of ppo_clip, bit for bit; the loss is 0 where clipped."""
    rho, bound = ratio(log_ratio), 1 + clip_range * advantage.sign()
    return advantage * torch.where(inside_clip(rho, advantage, bound), bound - rho, 0)


def log_hinge(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """max(0, xi |A| - A log rho) (PCPO, 2509.25774): its gradient is -A or 0, however large the ratio."""
    bound = clip_range * advantage.sign()
    return advantage * torch.where(inside_clip(log_ratio, advantage, bound), bound - log_ratio, 0)


def matching(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """max(0, xi |A| + A m) with m = -log_ratio, the matching form of the log-ratio (PCPO, 2509.25774)."""
    return log_hinge(log_ratio, advantage, clip_range)


def reinforce(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """-A log rho; never clipped, clip_range is not used."""
    return -advantage * log_ratio
