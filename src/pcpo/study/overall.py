"""One figure per model and arm over all rewards: iterations to the lowest target, over the baseline's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pcpo.study.stats import estimate

MIN_REWARDS = MIN_SEEDS = 2


def overall(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per model and arm with at least two rewards that can be counted: `ratio`, and the `targets` it is over.

    A reward counts by its lowest target, where every run of the arm and of the baseline reached it: of the others only
    the quick runs could be counted. The ratio is a geometric mean over the rewards within a seed, and then over the
    seeds that all of them have, with the interval over seeds.
    """
    rows = []
    for model in dict.fromkeys(group["model"] for group in groups):
        own = [group for group in groups if group["model"] == model]
        for arm in dict.fromkeys(arm for group in own for arm in group["arms"] if arm != group["baseline"]):
            found = [(group, logs) for group in own if (logs := _logs(group, arm))]
            seeds = sorted(set.intersection(*(set(logs) for _, logs in found))) if found else []
            if len(found) < MIN_REWARDS or len(seeds) < MIN_SEEDS:
                continue
            means = [float(np.mean([logs[seed] for _, logs in found])) for seed in seeds]
            targets = {group["reward"]: group["targets"][0]["label"] for group, _ in found}
            rows.append({"model": model, "arm": arm, "targets": targets, "ratio": asdict(estimate(means, math.exp))})
    return rows


def _logs(group: Mapping[str, Any], arm: str) -> dict[int, float]:
    """log(arm / baseline) of the iterations to the lowest target, by seed; empty unless all of both reached it."""
    times = group["targets"][0]["arms"] if group["targets"] else {}
    if arm not in times or group["baseline"] not in times:
        return {}
    one, other = (times[name]["times"]["iterations"] for name in (arm, group["baseline"]))
    if any(time is None for time in (*one.values(), *other.values())):
        return {}
    return {seed: math.log(one[seed] / other[seed]) for seed in one.keys() & other.keys()}
