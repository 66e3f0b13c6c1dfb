"""Quality at matched reward: every run by its first saved weights that reach a target evaluation reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pcpo.errors import EvaluationError, RunFolderError
from pcpo.evaluation.compare import Comparer, has_weights
from pcpo.evaluation.measure import Evaluation
from pcpo.evaluation.sampling import run_config
from pcpo.observe.events import read_events
from pcpo.trainer.checkpoint import list_checkpoints
from pcpo.trainer.config import Config

SAVED = "evaluations"


@dataclass(frozen=True)
class Match:
    """The first saved weights of a run that reach the target.

    reached    iteration of the first evaluation at or above the target, whether or not its weights were kept
    iteration  of the weights that are used, their evaluation `reward`, and the folder that holds them
    """

    run: str
    target: float
    reached: int
    iteration: int
    reward: float
    weights: Path


@dataclass(frozen=True)
class MatchedRun:
    """A run at the target, on the training prompts and on held-out ones; None where it was not asked for.

    match None: the run never reaches the target with weights that were kept; `best` is its highest evaluation.
    """

    run: str
    best: float | None
    match: Match | None
    training: Evaluation | None = None
    held_out: Evaluation | None = None


def saved_weights(run: Path) -> dict[int, Path]:
    """Iteration -> folder of tuned weights that the run keeps.

    `evaluations/NNNNNN`, written beside an evaluation; else a checkpoint; the run folder itself at the end of the run.
    """
    found = {int(path.name): path for path in list_checkpoints(run / "checkpoints")}
    kept = (run / SAVED).iterdir() if (run / SAVED).is_dir() else []
    found |= {int(path.name): path for path in kept if path.name.isdecimal() and has_weights(path)}
    log = read_events(run / "events.jsonl")
    if log.end is not None and log.evaluations and has_weights(run):
        found[log.evaluations[-1].iteration] = run
    return found


def find_match(run: str | Path, target: float) -> Match | None:
    """The first saved weights of a run whose evaluation reward is `target` or more; None if there are none.

    Weights of iteration 0 are the base model's. Raises RunFolderError for a folder that is no run.
    """
    saved = saved_weights(Path(run))
    rewards = _rewards(Path(run))
    above = [n for n, reward in rewards if reward >= target]
    kept = [(n, reward) for n, reward in rewards if reward >= target and n in saved]
    if not kept:
        return None
    iteration, reward = kept[0]
    return Match(str(run), target, above[0], iteration, reward, saved[iteration])


def quality_at_matched_reward(
    runs: Sequence[str | Path], target: float, training: Comparer | None = None, held_out: Comparer | None = None
) -> list[MatchedRun]:
    """Measure every run at the target, with one sampling for all: on training prompts, held-out prompts, or both.

    Raises EvaluationError when no run reaches the target, RunFolderError for a folder that is no run.
    """
    configs = check_matched(runs, target)
    best = {name: _best(name) for name in configs}
    matches = {name: find_match(name, target) for name in configs}

    def at(comparer: Comparer | None, match: Match) -> Evaluation | None:
        if comparer is None:
            return None
        return comparer.evaluate_run(Path(match.run), configs[match.run], match.weights, match.run)

    return [
        MatchedRun(name, best[name], match, at(training, match), at(held_out, match))
        if match is not None
        else MatchedRun(name, best[name], None)
        for name, match in matches.items()
    ]


def check_matched(runs: Sequence[str | Path], target: float) -> dict[str, Config]:
    """The configuration of every run. Raises as `quality_at_matched_reward` does, before anything is sampled."""
    configs = {}
    for run in runs:
        config = run_config(run)
        if config is None:
            raise RunFolderError("is no run folder", where=str(run), fix="name folders that pcpo train wrote")
        configs[str(run)] = config
    if not any(find_match(name, target) for name in configs):
        seen = ", ".join(f"{name} {'none' if (b := _best(name)) is None else f'{b:.4g}'}" for name in configs)
        raise EvaluationError(
            f"no run reaches {target:g} with weights that were kept",
            where="matched reward",
            fix=f"choose a lower target; best evaluations: {seen}",
        )
    return configs


def _best(run: str) -> float | None:
    return max((reward for _, reward in _rewards(Path(run))), default=None)


def _rewards(run: Path) -> list[tuple[int, float]]:
    """(iteration, mean reward) of the evaluations that judged a picture."""
    events = read_events(run / "events.jsonl").evaluations
    return [(event.iteration, event.reward_mean) for event in events if event.reward_mean is not None]


__all__ = ["Match", "MatchedRun", "check_matched", "find_match", "quality_at_matched_reward", "saved_weights"]
