"""Rewards: by name, by file, mixed and checked. What needs torch is imported when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pcpo.rewards.registry import REWARDS, RewardSpec, build_rewards, load_reward

if TYPE_CHECKING:
    from pcpo.rewards.base import evaluate
    from pcpo.rewards.checker import check_reward
    from pcpo.rewards.mixing import WeightedSum

_LATER = {"evaluate": "base", "check_reward": "checker", "WeightedSum": "mixing"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = ["REWARDS", "RewardSpec", "WeightedSum", "build_rewards", "check_reward", "evaluate", "load_reward"]
