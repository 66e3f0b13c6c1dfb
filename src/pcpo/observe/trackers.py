"""Scalars of an event for experiment trackers (tensorboard, wandb, trackio), which are off by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

PREFIXES = {"iteration": "train", "evaluation": "eval"}


def scalars(event: Mapping[str, Any]) -> dict[str, float]:
    """Name the event's numbers for a tracker: train/reward_mean, train/seconds/update, eval/rewards/NAME.

    Lists and missing numbers are left out; an event of another type has none.
    """
    prefix = PREFIXES.get(str(event.get("type")))
    named: dict[str, float] = {}
    if prefix is None:
        return named
    for key, value in event.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, number in parts:
            if isinstance(number, (int, float)) and key != "iteration":
                named["/".join(filter(None, (prefix, key, part)))] = number
    return named


def track(log: Callable[..., Any], event: Mapping[str, Any]) -> None:
    """Send the event's scalars through `log(values, step=iteration)`, as accelerate's Accelerator.log."""
    named = scalars(event)
    if named:
        log(named, step=int(event["iteration"]))
