"""From the results of cells to figures per model and reward: curves, ends, times to targets, comparisons by seed.

Only finished cells count, so every arm is judged over the same length of training. Everything is plain data, ready for
JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pcpo.study.along import along, collapsed, over_iterations, per_step, unevenness
from pcpo.study.overall import overall
from pcpo.study.plan import Study, Targets
from pcpo.study.results import columns, pace
from pcpo.study.stats import LEVEL, compare_times, crossing, estimate, paired_difference, restricted

TIMES = ("iterations", "samples", "seconds")
DEFAULT_TARGETS = Targets(share=[0.5, 0.8])
CURVE = {"iteration", "reward_mean", "samples", "seconds"}
DIAGNOSTICS = ("clip_fraction", "clip_fraction_low", "clip_fraction_high", "approx_kl", "grad_norm")


@dataclass(frozen=True)
class Run:
    """One finished cell: evaluation reward [E] at iterations, samples and seconds of training [E].

    Seconds are iterations times the median iteration's: what a run takes where it is not held up.
    """

    seed: int
    times: Mapping[str, list[float]]
    reward: list[float]
    results: Mapping[str, Any]

    def at(self, iteration: float) -> float:
        """Reward at an iteration, interpolated."""
        return float(np.interp(iteration, self.times["iterations"], self.reward))


def analyse(study: Study, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All figures of a study, one group per model and reward that has a finished cell."""
    groups = []
    for model in study.models:
        for reward in study.rewards:
            arms = {arm: _runs(results, model, reward, arm) for arm in study.arms_of(model)}
            found = {arm: runs for arm, runs in arms.items() if runs}
            if found:
                groups.append(_group(study, model, reward, found))
    complete = sum(bool(cell["complete"]) for cell in results)
    return {
        "name": study.name,
        "level": LEVEL,
        "cells": {"finished": complete, "unfinished": len(results) - complete},
        "groups": groups,
        "overall": overall(groups),
    }


def _runs(results: Sequence[Mapping[str, Any]], model: str, reward: str, arm: str) -> list[Run]:
    runs = []
    for cell in results:
        if (cell["model"], cell["reward"], cell["arm"]) != (model, reward, arm) or not cell["complete"]:
            continue
        rows = [row for row in cell["evaluations"] if row["reward_mean"] is not None]
        if len(rows) > 1:
            iterations, seconds = [float(row["iteration"]) for row in rows], pace(cell)
            times = {
                "iterations": iterations,
                "samples": [float(row["samples"]) for row in rows],
                "seconds": [seconds * place for place in iterations],
            }
            runs.append(Run(cell["seed"], times, [row["reward_mean"] for row in rows], cell))
    return runs


def _group(study: Study, model: str, reward: str, arms: Mapping[str, list[Run]]) -> dict[str, Any]:
    baseline = study.baseline_of(model)
    every = [run for runs in arms.values() for run in runs]
    horizon = min(run.times["iterations"][-1] for run in every)
    end = {arm: {run.seed: run.at(horizon) for run in runs} for arm, runs in arms.items()}
    # an arm may start elsewhere, on another grid of steps; targets rise from the baseline's start, and above every one
    highest = max(run.reward[0] for run in every)
    start = float(np.mean([run.reward[0] for run in arms.get(baseline) or every]))
    targets = _targets(study.targets.get(reward, DEFAULT_TARGETS), start, list(end.get(baseline, {}).values()))
    return {
        "model": model,
        "reward": reward,
        "order": list(study.arms),
        "baseline": baseline,
        "start": start,
        "horizon": horizon,
        "arms": {
            arm: {
                "seeds": [run.seed for run in runs],
                "difference": runs[0].results["difference"],
                "curve": _curve(runs, horizon),
                "end": asdict(estimate(list(end[arm].values()))),
                "end_against_baseline": asdict(paired_difference(end[arm], end.get(baseline, {}))),
                "also": _also(runs),
                "collapsed": sum(collapsed(run.results) for run in runs),
                "per_step": per_step([run.results for run in runs]),
                "over_iterations": over_iterations([run.results for run in runs]),
                "along": along([run.results for run in runs], horizon),
            }
            for arm, runs in arms.items()
        },
        "targets": [_target(label, value, arms, baseline) for label, value in targets if value > highest],
        "targets_below_start": [label for label, value in targets if value <= highest],
    }


def _targets(wanted: Targets, start: float, ends: Sequence[float]) -> list[tuple[str, float]]:
    """(label, value) of every target, lowest first; a share needs two seeds of a baseline that rose."""
    found = [(f"{value:g}", value) for value in wanted.absolute]
    found += [(f"{100 * rise:+g} %", start + rise * abs(start)) for rise in wanted.rise]
    if len(ends) > 1 and np.mean(ends) > start:
        gain = float(np.mean(ends)) - start
        found += [(f"{100 * share:g} % of the baseline's rise", start + share * gain) for share in wanted.share]
    return sorted(found, key=lambda target: target[1])


def _curve(runs: Sequence[Run], horizon: float) -> list[dict[str, Any]]:
    """Mean and interval over all seeds at every iteration that one of them evaluated."""
    places = sorted({place for run in runs for place in run.times["iterations"] if place <= horizon})
    return [{"iteration": place, **asdict(estimate([run.at(place) for run in runs]))} for place in places]


def _also(runs: Sequence[Run]) -> dict[str, Any]:
    """What else was measured: other figures of the last evaluation, and means over the iterations."""
    values: dict[str, list[float]] = {}
    figures: dict[str, Any]
    for run in runs:
        rows = run.results["iterations"]
        figures = columns({key: value for key, value in run.results["evaluations"][-1].items() if key not in CURVE})
        if sum(name.startswith("rewards.") for name in figures) == 1:  # the reward itself once more
            figures = {name: value for name, value in figures.items() if not name.startswith("rewards.")}
        for name in DIAGNOSTICS:
            known = [row[name] for row in rows if row.get(name) is not None]
            figures[name] = float(np.mean(known)) if known else None
        errors = [row["ratio_error"] for row in rows if row.get("ratio_error") is not None]
        figures["largest_ratio_error_before_the_first_update"] = max(errors, default=None)
        figures |= unevenness(run.results)
        figures["seconds_per_iteration"] = pace(run.results)
        for name, value in figures.items():
            if isinstance(value, float | int):
                values.setdefault(name, []).append(float(value))
    return {name: asdict(estimate(found)) for name, found in values.items()}


def _target(label: str, value: float, arms: Mapping[str, list[Run]], baseline: str) -> dict[str, Any]:
    """Times of every arm to one target, and against the baseline's.

    Times are restricted to where the first run that has not reached the target ended: up to there all are known.
    """
    times = {
        arm: {axis: {run.seed: crossing(run.times[axis], run.reward, value) for run in runs} for axis in TIMES}
        for arm, runs in arms.items()
    }
    failing = [run for runs in arms.values() for run in runs if max(run.reward) < value]
    horizon = {axis: min((run.times[axis][-1] for run in failing), default=math.inf) for axis in TIMES}
    return {
        "label": label,
        "value": value,
        "restricted_to": horizon if failing else None,
        "arms": {
            arm: {
                "reached": sum(time is not None for time in of["iterations"].values()),
                "runs": len(of["iterations"]),
                "times": of,
                "restricted_mean": {
                    axis: asdict(estimate([restricted(time, horizon[axis]) for time in of[axis].values()]))
                    for axis in TIMES
                },
            }
            for arm, of in times.items()
        },
        "against_baseline": {
            arm: {axis: asdict(compare_times(of[axis], times[baseline][axis], horizon[axis])) for axis in TIMES}
            for arm, of in times.items()
            if arm != baseline and baseline in times
        },
    }
