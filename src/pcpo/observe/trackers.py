"""Scalars of an event for experiment trackers (tensorboard, wandb, trackio), which are off by default."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pcpo.errors import ConfigError

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


@contextmanager
def tracking(name: str, run_name: str, folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that sends an event's scalars to accelerate's tracker `name`; "none" sends nothing.

    tensorboard writes below `folder`; wandb and trackio go where they are set up to go. Raises ConfigError where the
    tracker's package is not installed.
    """
    if name == "none":
        yield lambda event: None
        return
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"{name} is not installed", where="run.tracker", fix=f"pip install {name}")
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers ask it which process they run in
    place = {"logging_dir": folder} if name == "tensorboard" else {}
    tracker = LOGGER_TYPE_TO_CLASS[name](run_name, **place)
    tracker.start()
    try:
        yield lambda event: tracker.log(scalars(event), step=int(event["iteration"])) if scalars(event) else None
    finally:
        tracker.finish()
