"""Advantages: how much better a picture is than what was to be expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pcpo.advantages.group import global_std, grpo, standardised, zero_std_groups, zero_std_mask
from pcpo.advantages.running import RunningStats


@dataclass(frozen=True)
class AdvantageSpec:
    """A registered advantage. stateful: `function` is a class, made once per run, given the prompts."""

    function: Callable[..., Any]
    summary: str
    source: str
    stateful: bool = False


ADVANTAGES: dict[str, AdvantageSpec] = {
    "grpo": AdvantageSpec(grpo, "Over the group's mean and std", "2402.03300"),
    "global": AdvantageSpec(global_std, "Over the group's mean and the batch's std", "2505.05470"),
    "running": AdvantageSpec(RunningStats, "Over the prompt's running mean and std", "2305.13301", stateful=True),
}

__all__ = [
    "ADVANTAGES",
    "AdvantageSpec",
    "RunningStats",
    "global_std",
    "grpo",
    "standardised",
    "zero_std_groups",
    "zero_std_mask",
]
