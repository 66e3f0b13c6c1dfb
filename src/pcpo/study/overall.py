"""One ratio per model and arm over all rewards: iterations to the lowest targets over the baseline's, see ADR 19."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pcpo.study.stats import estimate, restricted_log_ratio

MIN_REWARDS = MIN_SEEDS = 2


def overall(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per model and arm that has targets of two rewards or more.

    targets            reward -> label of its lowest target
    ratio              arm / baseline: geometric mean over the rewards within a seed, then over the seeds that all
                       rewards have, with the interval over seeds
    reached, baseline  how many of the `runs` of each reached it; one that did not counts as if it had where the first
                       such run ended, so that no reward is chosen by who succeeds at it
    """
    rows = []
    for model in dict.fromkeys(group["model"] for group in groups):
        own = [group for group in groups if group["model"] == model and group["targets"]]
        for arm in dict.fromkeys(arm for group in own for arm in group["arms"] if arm != group["baseline"]):
            chosen = [(group, pairs) for group in own if (pairs := _pairs(group, arm))]
            if len(chosen) < MIN_REWARDS:
                continue
            seeds = sorted(set.intersection(*(set(pairs) for _, pairs in chosen)))
            if len(seeds) < MIN_SEEDS:
                continue
            reached = [sum(pairs[seed][n] is not None for _, pairs in chosen for seed in seeds) for n in (0, 1)]
            if not any(reached):
                continue
            logs = [[restricted_log_ratio(*pairs[seed], _horizon(group)) for group, pairs in chosen] for seed in seeds]
            rows.append(
                {
                    "model": model,
                    "arm": arm,
                    "targets": {group["reward"]: group["targets"][0]["label"] for group, _ in chosen},
                    "ratio": asdict(estimate([float(np.mean(of)) for of in logs], math.exp)),
                    "reached": reached[0],
                    "baseline": reached[1],
                    "runs": len(seeds) * len(chosen),
                }
            )
    return rows


def _pairs(group: Mapping[str, Any], arm: str) -> dict[int, tuple[float | None, float | None]]:
    """Iterations to the lowest target of the arm and the baseline, by seed; None: not reached."""
    times = group["targets"][0]["arms"]
    if arm not in times or group["baseline"] not in times:
        return {}
    one, other = (times[name]["times"]["iterations"] for name in (arm, group["baseline"]))
    return {seed: (one[seed], other[seed]) for seed in one.keys() & other.keys()}


def _horizon(group: Mapping[str, Any]) -> float:
    """Where times to the lowest target are cut, in iterations; nowhere where every run reached it."""
    cut = group["targets"][0]["restricted_to"]
    return cut["iterations"] if cut else math.inf
