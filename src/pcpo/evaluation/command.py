"""What `pcpo eval` does: settle what was left open, refuse early, measure, print and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from pcpo.data.files import write_json_atomic
from pcpo.data.prompts import load_prompts
from pcpo.errors import ConfigError
from pcpo.evaluation.compare import BASE, Comparer, Sampling, check_source, held_out
from pcpo.evaluation.features import EMBEDDED, load_features
from pcpo.evaluation.matched import MatchedRun, check_matched, find_match, quality_at_matched_reward
from pcpo.evaluation.measure import Evaluation
from pcpo.evaluation.sampling import DEFAULT, Placement
from pcpo.evaluation.tables import matched_json, print_evaluations, print_matches, to_json
from pcpo.models import folders
from pcpo.observe.console import Console
from pcpo.rewards.registry import REWARDS, load_reward
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import parse_yaml, validate
from pcpo.types import Reward

TRAINING, HELD_OUT = "common50", "heldout50"
MAX_PROMPTS = 64
STEPS = 20
GUIDANCE = 5.0


@dataclass(frozen=True)
class Request:
    """The command's arguments; None is settled from the first run among the sources."""

    sources: Sequence[str]
    references: Sequence[str] | None = None
    prompts: str | None = None
    held_out: str | None = None
    count: int = 4
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    features: Sequence[str] = (EMBEDDED,)
    rewards: Sequence[str] | None = None
    target: float | None = None
    output: Path | None = None
    quiet: bool = False
    placement: Placement = DEFAULT


def run(request: Request) -> dict[str, Any]:
    """Measure, print the tables, write the file; returns what is written. Raises PCPOError before it samples."""
    configs = [config for source in request.sources if (config := check_source(source)) is not None]
    if request.held_out is not None and request.target is None:
        raise ConfigError("goes with --matched", where="--held-out", fix="choose prompts with --prompts")
    sampled = len(request.sources)
    if request.target is not None:
        sampled = sum(
            find_match(run, request.target) is not None for run in check_matched(request.sources, request.target)
        )
    references = list(request.references if request.references is not None else [BASE] if configs else [])
    for name in references:
        if name != BASE:
            check_source(name)
    bases = _bases(request.sources, configs) if BASE in references else []
    sampling = _sampling(request, configs)
    others = None if request.target is None else _held_out(request, sampling, configs)
    transformers_logging.disable_progress_bar()
    rewards = _rewards(request.rewards, configs)
    features = [load_features(name) for name in dict.fromkeys(request.features)]
    with Console(request.quiet) as console:
        if EMBEDDED in request.features and any(c.model.path not in folders.EMBEDDED for c in configs):
            console.warn("emoji_clip knows emoji only; choose --features for other pictures")
        work = sum(s.work for s in (sampling, others) if s is not None)
        with console.task("sampling", work * (sampled + len(bases))) as advance:
            measured = features, rewards, references, advance, replace(request.placement, runs=tuple(configs))
            first = Comparer(sampling, *measured)
            if request.target is None:
                tables = {"": [*map(first.evaluate_base, bases), *map(first.evaluate, request.sources)]}
                document = to_json(sampling, tables[""])
            else:
                second = None if others is None else Comparer(others, *measured)
                runs = quality_at_matched_reward(request.sources, request.target, first, second)
                tables = _matched_tables(runs, first, second, bases)
                document = matched_json(runs, request.target, sampling, others)
    if request.output is not None:
        write_json_atomic(request.output, document)
    if not request.quiet:
        if request.target is not None:
            print_matches(runs, request.target)
        for title, evaluations in tables.items():
            print_evaluations(evaluations, title)
    return document


def _bases(sources: Sequence[str], configs: Sequence[Config]) -> list[Config]:
    """A run for every base model to measure beside the sources: not for one that is a source itself."""
    bases = {c.model.path: c for c in configs}
    return [c for path, c in bases.items() if not any(folders.same_model(path, source) for source in sources)]


def _matched_tables(
    runs: Sequence[MatchedRun], training: Comparer, others: Comparer | None, bases: Sequence[Config]
) -> dict[str, list[Evaluation]]:
    """Title -> rows, the base models first."""
    tables = {}
    for title, comparer, rows in (
        ("training prompts", training, [run.training for run in runs]),
        ("held-out prompts", others, [run.held_out for run in runs]),
    ):
        if comparer is not None:
            tables[title] = [*map(comparer.evaluate_base, bases), *(row for row in rows if row is not None)]
    return tables


def _sampling(request: Request, configs: Sequence[Config]) -> Sampling:
    """How all sources are sampled, as the first run was trained where the request does not say."""
    first = configs[0] if configs else None
    if request.prompts is not None:
        prompts = load_prompts(request.prompts)
    else:
        prompts = load_prompts(first.prompts if first else TRAINING)[:MAX_PROMPTS]
    scale = request.guidance_scale
    return Sampling(
        prompts=prompts,
        count=request.count,
        steps=request.steps or (first.sampler.steps if first else STEPS),
        guidance_scale=scale if scale is not None else first.sampler.guidance_scale if first else GUIDANCE,
        seed=request.seed,
    )


def _held_out(request: Request, sampling: Sampling, configs: Sequence[Config]) -> Sampling | None:
    """The same sampling on prompts that no run was trained on; None where there are none to take."""
    source = request.held_out
    if source is None and configs and all(c.prompts == TRAINING for c in configs):
        source = HELD_OUT
    if source is None:
        return None
    training = [prompt for c in configs for prompt in load_prompts(c.prompts)]
    return replace(sampling, prompts=held_out(load_prompts(source), training))


def _rewards(given: Sequence[str] | None, configs: Sequence[Config]) -> dict[str, Reward]:
    """The rewards to report: those given, else the runs' own that are built in."""
    if given is None:
        parts = [part for config in configs for part in config.reward if part.name in REWARDS]
    else:
        values = [parse_yaml(text, "--rewards") if text.lstrip().startswith("{") else text for text in given]
        parts = validate({"reward": values}, "--rewards").reward if values else []
    return {part.name.rpartition(":")[2]: load_reward(part.name, **part.options) for part in parts}


__all__ = ["Request", "run"]
