"""What happened at each sampling step and along training, per arm with its spread over seeds, as plain data.

Fields that a run has not logged are left out; an estimate is a mapping as `pcpo.study.stats.Estimate` has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pcpo.study.stats import estimate

QUANTILES = ("p01", "p50", "p99")
# see docs/adr/0015-early-warning-rule.md: the early warning's limits, and one that a run of a study has to lose by
LOST_DIVERSITY, LOST_REWARD, LOST_HELD_OUT = 0.2, 0.5, 2.0

Result = Mapping[str, Any]
Rows = Iterable[tuple[Sequence[int], Sequence[float | None]]]


def per_step(results: Sequence[Result]) -> dict[str, Any] | None:
    """Means over the training, by step [S], over the runs of one arm; None when no step was logged.

    native, target   share of the credit by formula, over the probes after the start
    share            measured share of the gradient's norm, over the same probes
    variance         share of the gradient's variance: where the noise of the update comes from
    clip_fraction    share of pairs left without gradient, over all iterations
    log_ratio        quantiles and std of the log-ratio, over all iterations
    """
    runs = [_one_run(result) for result in results]
    steps = sorted({step for run in runs for values in run.values() for step in values})
    if not steps:
        return None
    found: dict[str, Any] = {"steps": steps}
    for name in dict.fromkeys(name for run in runs for name in run):
        found[name] = [_over_seeds([run[name][step] for run in runs if step in run.get(name, {})]) for step in steps]
    return found


def _one_run(result: Result) -> dict[str, dict[int, float]]:
    probes, iterations = _probes(result), result["iterations"]
    found = {
        "native": _by_step((p["steps"], p.get("native_share", [])) for p in probes),
        "target": _by_step((p["steps"], p.get("target_share", [])) for p in probes),
        "share": _by_step((p["steps"], p.get("share", [])) for p in probes),
        "variance": _by_step((p["steps"], _shares(p.get("variance", []))) for p in probes),
        "clip_fraction": _by_step((i.get("steps", []), i.get("clip_fraction_per_step", [])) for i in iterations),
        "log_ratio_std": _by_step((i.get("steps", []), i.get("log_ratio_std_per_step", [])) for i in iterations),
    }
    for name in QUANTILES:
        rows = ((i.get("steps", []), i.get("log_ratio_quantiles_per_step", {}).get(name, [])) for i in iterations)
        found[f"log_ratio_{name}"] = _by_step(rows)
    return {name: values for name, values in found.items() if values}


def _probes(result: Result) -> list[Result]:
    """Measured gradient shares after the start, where a LoRA that is still zero hides half of its gradient."""
    probes: list[Result] = list(result.get("gradient_share", []))
    return [probe for probe in probes if probe["iteration"] > 0] or probes


def _shares(values: Sequence[float | None]) -> list[float | None]:
    total = sum(value for value in values if value is not None)
    return [None if value is None else value / total for value in values] if total > 0 else []


def _by_step(rows: Rows) -> dict[int, float]:
    """Mean of every step over the events that have it; a random choice of steps leaves each in some."""
    found: dict[int, list[float]] = {}
    for steps, values in rows:
        for step, value in zip(steps, values, strict=False):
            if value is not None:
                found.setdefault(step, []).append(value)
    return {step: float(np.mean(values)) for step, values in found.items()}


def unevenness(result: Result) -> dict[str, float]:
    """How uneven the steps are: the largest share of gradient and of its variance, and the clip fraction's spread.

    The spread is the standard deviation over the steps, relative to the mean.
    """
    run = _one_run(result)
    largest = {"share": "largest_gradient_share", "variance": "largest_variance_share"}
    found = {name: max(run[key].values()) for key, name in largest.items() if key in run}
    clipped = list(run.get("clip_fraction", {}).values())
    if len(clipped) > 1 and np.mean(clipped) > 0:
        found["clip_fraction_spread_over_steps"] = float(np.std(clipped) / np.mean(clipped))
    return found


def over_iterations(results: Sequence[Result], names: Sequence[str] = ("clip_fraction",)) -> dict[str, Any]:
    """Figures of the iterations, over seeds."""
    places = sorted({row["iteration"] for result in results for row in result["iterations"] if "iteration" in row})
    found: dict[str, Any] = {"iterations": places}
    for name in names:
        rows = [{r.get("iteration"): r.get(name) for r in result["iterations"]} for result in results]
        found[name] = [_over_seeds([row[place] for row in rows if row.get(place) is not None]) for place in places]
    return found


def along(results: Sequence[Result], horizon: float) -> dict[str, Any]:
    """Reward, diversity and held-out rewards at the evaluations, over seeds; `ends` holds the last one of each seed."""
    tables = [
        {row["iteration"]: measures(row) for row in result["evaluations"] if row["iteration"] <= horizon}
        for result in results
    ]
    places = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    names = list(dict.fromkeys(name for table in tables for row in table.values() for name in row))
    kept = [name for name in names if all(name in table[place] for table in tables for place in places)]
    return {
        "iterations": places,
        "measures": {n: [_over_seeds([table[place][n] for table in tables]) for place in places] for n in kept},
        "ends": {name: [table[places[-1]][name] for table in tables] for name in kept if places},
    }


def measures(evaluation: Result) -> dict[str, float]:
    """Reward, diversity and held-out rewards of one evaluation, those that it has."""
    diversity = (evaluation.get("monitors") or {}).get("diversity")
    held_out = {f"held_out.{name}": value for name, value in (evaluation.get("held_out") or {}).items()}
    found = {"reward": evaluation.get("reward_mean"), "diversity": diversity, **held_out}
    return {name: value for name, value in found.items() if value is not None}


def collapsed(result: Result) -> bool:
    """Whether diversity, reward or a held-out reward is lost at both of the last two evaluations, by ADR 15's limits.

    Diversity: more than a fifth below the start's. Reward: below its best by more than half of the standard deviation
    that it had among pictures at the start. A held-out reward: below its start by more than two of the standard
    deviations that it had among prompts there; results that do not say that deviation are not judged by it.
    """
    rows = list(result["evaluations"])
    if len(rows) < 3:
        return False
    found = [measures(row) for row in rows]
    start, tail = found[0], found[-2:]

    def lost(name: str, limit: float) -> bool:
        return name in start and all(name in row and row[name] < limit for row in tail)

    if lost("diversity", (1 - LOST_DIVERSITY) * start.get("diversity", 0.0)):
        return True
    rewards = [row["reward"] for row in found if "reward" in row]
    spread = rows[0].get("reward_std")
    if spread is not None and rewards and lost("reward", max(rewards) - LOST_REWARD * spread):
        return True
    spreads = {f"held_out.{name}": value for name, value in (rows[0].get("held_out_std") or {}).items()}
    return any(lost(name, start[name] - LOST_HELD_OUT * spreads[name]) for name in spreads.keys() & start.keys())


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    return asdict(estimate(values))
