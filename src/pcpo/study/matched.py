"""`pcpo study matched`: quality of every arm at a reward that all its runs reach, from the weights that cells keep.

Needs `evaluation.save=true` in the study. Each cell's figures are stored in `matched/CELL.json` and made once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from pcpo.data.files import write_json_atomic
from pcpo.data.prompts import load_prompts
from pcpo.data.untrusted import read_json
from pcpo.errors import ConfigError
from pcpo.evaluation.compare import Comparer, Sampling, held_out
from pcpo.evaluation.features import EMBEDDED, load_features
from pcpo.evaluation.matched import find_match
from pcpo.evaluation.measure import Evaluation
from pcpo.models import folders
from pcpo.observe.console import Console
from pcpo.rewards.registry import load_reward
from pcpo.study.matched_table import MATCHED, MAX_BYTES, REPORT, summary
from pcpo.study.plan import Cell, Study
from pcpo.study.results import collect
from pcpo.study.runner import open_study

SETS = ("training", "held_out")


@dataclass(frozen=True)
class Options:
    """How runs are matched and sampled.

    pictures  in each set, spread evenly over its prompts, two a prompt at least
    held_out  prompts besides the training prompts; None: heldout50 for the embedded models, else no such set
    features  feature sets (see docs/how-to/evaluate.md)
    share     of each arm's runs that have to reach the target
    """

    pictures: int = 200
    held_out: str | None = None
    features: Sequence[str] = (EMBEDDED,)
    share: float = 1.0


def match_study(output: Path, options: Options, quiet: bool = False) -> Path:
    """Measure every finished cell at the matched reward of its model and reward; returns report/matched.json.

    Raises ConfigError for a share outside (0, 1], RunFolderError for a folder that is no study.
    """
    if not 0 < options.share <= 1:
        raise ConfigError(f"{options.share:g} is no share", where="--share", fix="give a number above 0, up to 1")
    study, cells = open_study(output)
    done = {result["cell"]: result for result in collect(cells) if result["complete"]}
    transformers_logging.disable_progress_bar()
    found = {}
    with Console(quiet) as console:
        for model in study.models:
            for reward in study.rewards:
                of = [cell for cell in cells if (cell.model, cell.reward) == (model, reward) and cell.name in done]
                if of:
                    found[f"{model}--{reward}"] = _group(study, output, of, done, options, console)
    path = output / REPORT / MATCHED
    write_json_atomic(path, found)
    return path


def matched_target(rewards: Mapping[str, Sequence[Sequence[float]]], share: float = 1.0) -> float:
    """The highest reward that at least `share` of the runs of every arm reach.

    rewards: arm -> run -> evaluation rewards after the start.
    """
    reached = []
    for runs in rewards.values():
        best = sorted((max(run) for run in runs), reverse=True)
        reached.append(best[math.ceil(share * len(best)) - 1])
    return min(reached)


def _group(
    study: Study,
    output: Path,
    cells: Sequence[Cell],
    done: Mapping[str, Mapping[str, Any]],
    options: Options,
    console: Console,
) -> dict[str, Any]:
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    common = set.intersection(*({cell.seed for cell in cells if cell.arm == arm} for arm in arms))
    head: dict[str, Any] = {"model": cells[0].model, "seeds": sorted(common), "arms": arms, "order": list(study.arms)}
    head |= {"reward": cells[0].reward, "baseline": study.baseline_of(cells[0].model), "share": options.share}
    cells = [cell for cell in cells if cell.seed in common]
    if not cells:
        return head | {"target": None, "reason": "no seed is finished in every arm"}
    curves = {cell.name: [e["reward_mean"] for e in done[cell.name]["evaluations"]] for cell in cells}
    start = curves[cells[0].name][0]
    target = matched_target({a: [curves[c.name][1:] for c in cells if c.arm == a] for a in arms}, options.share)
    head |= {"start": start}
    if target <= start:
        return head | {"target": None, "reason": f"the highest reward that all reach, {target:.4g}, is no rise"}
    matches = {cell.name: find_match(cell.folder, target) for cell in cells}
    kept = [cell for cell in cells if (match := matches[cell.name]) is not None and match.iteration > 0]
    if not kept:
        return head | {"target": None, "reason": "no weights are kept; set evaluation.save=true"}
    comparers = _comparers(kept[0], options)
    rows = {}
    with console.task(f"{cells[0].model}, {cells[0].reward}", len(kept)) as advance:
        for cell in kept:
            match = matches[cell.name]
            assert match is not None
            path = output / "matched" / f"{cell.name}.json"
            made = _measured(cell, match.iteration, match.weights, comparers, path)
            made["training"]["evaluation reward"] = match.reward
            rows[cell.name] = {"arm": cell.arm, "seed": cell.seed, "iteration": match.iteration, **made}
            advance(1)
    sampled = {name: comparer.sampling.to_json() for name, comparer in comparers.items()}
    return summary(head | {"target": target, "sampling": sampled, "features": list(options.features), "cells": rows})


def _comparers(cell: Cell, options: Options) -> dict[str, Comparer]:
    """One per set of prompts; all cells of a group are sampled alike."""
    config = cell.config
    prompts = load_prompts(config.prompts)
    source = options.held_out or ("heldout50" if config.model.path in folders.EMBEDDED else None)
    sets = {"training": prompts}
    if source is not None:
        sets["held_out"] = held_out(load_prompts(source), prompts)
    features = [load_features(name) for name in dict.fromkeys(options.features)]
    parts = [*config.reward, *config.evaluation.rewards]
    rewards = {part.name.rpartition(":")[2]: load_reward(part.name, **part.options) for part in parts}
    scale = config.evaluation.guidance_scale
    return {
        name: Comparer(
            Sampling(
                prompts=kept,
                count=max(2, round(options.pictures / len(kept))),
                steps=config.evaluation.steps or config.sampler.steps,
                guidance_scale=config.sampler.guidance_scale if scale is None else scale,
            ),
            features,
            rewards,
        )
        for name, kept in sets.items()
    }


def _measured(
    cell: Cell, iteration: int, weights: Path, comparers: Mapping[str, Comparer], path: Path
) -> dict[str, dict[str, float]]:
    """Figures of a cell's weights in each set: read where they were made before of the same weights and sampling."""
    first = next(iter(comparers.values()))
    key = {
        "iteration": iteration,
        "sampling": {name: comparer.sampling.to_json() for name, comparer in comparers.items()},
        "features": [f.name for f in first.features],
        "rewards": list(first.rewards),
    }
    try:
        stored = read_json(path, MAX_BYTES)
        if stored["key"] == key:
            return {name: dict(stored["figures"][name]) for name in comparers}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not made yet, or not whole: it is made again
    figures = {
        name: flat_figures(comparer.evaluate_run(cell.folder, cell.config, weights, cell.name))
        for name, comparer in comparers.items()
    }
    write_json_atomic(path, {"key": key, "figures": figures})
    return figures


def flat_figures(evaluation: Evaluation) -> dict[str, float]:
    """The figures of an evaluation by name; those in a feature set are named after it."""
    found: dict[str, float | None] = {f"reward {r.reward}": r.mean for r in evaluation.rewards}
    for row in evaluation.features:
        for distance in row.distances:
            found[f"{row.features}: Frechet distance to the base model"] = distance.frechet
            found[f"{row.features}: kernel distance to the base model"] = distance.kernel
        found[f"{row.features}: diversity within prompts"] = row.pairwise
        found[f"{row.features}: perceptual diversity within prompts"] = row.perceptual
        found[f"{row.features}: Vendi score"] = row.vendi
        found[f"{row.features}: alignment"] = row.alignment
        found[f"{row.features}: retrieval"] = row.retrieval
    return {name: value for name, value in found.items() if value is not None}
