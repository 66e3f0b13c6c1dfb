"""From a surrogate to an objective, StepTerms -> LossTerms, with the metrics that users of PPO know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pcpo.errors import ConfigError, unknown_name
from pcpo.objectives.surrogates import (
    MAX_EXPONENT,
    hinge,
    inside_clip,
    log_hinge,
    matching,
    ppo_clip,
    ratio,
    reinforce,
)
from pcpo.types import LossTerms, StepTerms, Surrogate

Objective = Callable[[StepTerms], LossTerms]


@dataclass(frozen=True)
class ObjectiveSpec:
    """A registered surrogate. clips: what the clip range bounds, "ratio", "log_ratio" or None."""

    function: Surrogate
    clips: str | None
    summary: str
    source: str


OBJECTIVES: dict[str, ObjectiveSpec] = {
    "ppo_clip": ObjectiveSpec(ppo_clip, "ratio", "Clipped ratio", "1707.06347"),
    "hinge": ObjectiveSpec(hinge, "ratio", "Hinge on the ratio; ppo_clip's gradient", "2110.13799"),
    "log_hinge": ObjectiveSpec(log_hinge, "log_ratio", "Hinge on the log-ratio", "2509.25774"),
    "matching": ObjectiveSpec(matching, "log_ratio", "PCPO: hinge on the matching form", "2509.25774"),
    "reinforce": ObjectiveSpec(reinforce, None, "Advantage times log-ratio, not clipped", "2305.13301"),
}


def make_objective(name: str, clip_range: float) -> Objective:
    """The objective `name`: weight * surrogate per pair, with detached metrics, each [N].

    clipped     1 where the clip leaves no gradient (A != 0), else 0
    clipped_low, clipped_high   the same where A < 0, the lower bound, and where A > 0, the upper one; else 0
    approx_kl   rho - 1 - log rho (>= 0) of the reduced log-ratio
    log_ratio   as given

    Raises ConfigError for an unknown name or a clip range that is not above 0.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    if not 0 < clip_range < 1:
        raise ConfigError(f"clip_range = {clip_range!r}", where="objective", fix="use a value between 0 and 1")
    spec = OBJECTIVES[name]

    def objective(terms: StepTerms) -> LossTerms:
        per_step = terms.weight * spec.function(terms.log_ratio, terms.advantage, clip_range)
        log_ratio, advantage = terms.log_ratio.detach(), terms.advantage.detach()
        bounded = log_ratio.clamp(max=MAX_EXPONENT)
        clipped = _clipped(spec.clips, log_ratio, advantage, clip_range)
        metrics = {
            "clipped": clipped,
            "clipped_low": clipped * (advantage < 0),
            "clipped_high": clipped * (advantage > 0),
            # expm1 keeps the digits that exp(x) - 1 - x loses near 0
            "approx_kl": torch.expm1(bounded) - bounded,
            "log_ratio": log_ratio,
        }
        return LossTerms(per_step, metrics)

    return objective


def _clipped(clips: str | None, log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    if clips is None:
        return torch.zeros_like(log_ratio)
    bound = clip_range * advantage.sign()
    if clips == "ratio":
        inside = inside_clip(ratio(log_ratio), advantage, 1 + bound)
    else:
        inside = inside_clip(log_ratio, advantage, bound)
    return (~inside & (advantage != 0)).to(log_ratio.dtype)
