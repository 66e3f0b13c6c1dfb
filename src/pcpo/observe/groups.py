"""Runs of one configuration and several seeds as one group: what they have in common, and their mean with its band."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from pcpo.errors import RunFolderError
from pcpo.observe.events import read_events
from pcpo.observe.records import RunLog
from pcpo.observe.series import StepShares, step_shares
from pcpo.observe.tables import flatten
from pcpo.study.stats import MIN_SEEDS, student_quantile

MAX_GROUPS = 8
# Settings that say which run of a group it is, or where it is executed.
OF_A_RUN = {
    "run.seed",
    "run.output",
    "run.device",
    "run.threads",
    "run.tracker",
    "run.checkpoint_every",
    "run.embedding_cache",
}


@dataclass(frozen=True)
class Run:
    """A run folder and its log."""

    folder: Path
    log: RunLog

    @property
    def settings(self) -> dict[str, str]:
        """Settings as dotted keys and words, without those of the single run."""
        config = self.log.run_start.config if self.log.run_start else {}
        return {key: value for key, value in flatten(config) if key not in OF_A_RUN}

    @property
    def seed(self) -> int | None:
        """run.seed; None when the log has none."""
        config = self.log.run_start.config if self.log.run_start else {}
        part = config.get("run")
        seed = part.get("seed") if isinstance(part, dict) else None
        return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    name: str
    runs: list[Run]

    @property
    def first(self) -> Run:
        """The run with the lowest seed: it stands for the group where one picture has to."""
        return min(self.runs, key=lambda run: (run.seed is None, run.seed or 0, str(run.folder)))

    @property
    def seeds(self) -> str:
        """How many there are, in words: 3 seeds; a seed that came twice is one."""
        count = len({run.seed if run.seed is not None else run.folder for run in self.runs})
        return f"{count} seed{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Mean:
    """Mean over n seeds at one iteration; low and high are its 95 % t interval, None below three seeds."""

    iteration: int
    mean: float
    low: float | None
    high: float | None
    n: int


def find_runs(names: Sequence[str]) -> list[Path]:
    """Run folders by name or pattern, each once, in the given order.

    A pattern (*, ?, [...]) stands for the run folders that match it. Raises RunFolderError when none does.
    """
    found: list[Path] = []
    for name in names:
        if Path(name).exists() or not any(mark in name for mark in "*?["):
            found.append(Path(name))
            continue
        start = Path(Path(name).anchor)
        matches = start.glob(str(Path(name).relative_to(start)) if start.anchor else name)
        matching = sorted(match for match in matches if (match / "events.jsonl").is_file())
        if not matching:
            raise RunFolderError("no run folder matches", where=name, fix="check the pattern; quote it")
        found += matching
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def read_groups(folders: Sequence[Path]) -> list[Group]:
    """Read runs and group them by their settings without the seed, in order of appearance.

    Raises RunFolderError for a log that cannot be read, a seed that comes twice in a group, and more than 8 groups.
    """
    together: dict[str, list[Run]] = {}
    for folder in folders:
        run = Run(folder, read_events(folder / "events.jsonl"))
        key = json.dumps(run.settings, sort_keys=True) if run.settings else str(folder)
        together.setdefault(key, []).append(run)
    if len(together) > MAX_GROUPS:
        raise RunFolderError(
            f"{len(together)} different configurations", where="report", fix=f"compare at most {MAX_GROUPS} at a time"
        )
    for runs in together.values():
        _refuse_twins(runs)
    return [Group(name, runs) for name, runs in zip(_names(list(together.values())), together.values(), strict=True)]


def _refuse_twins(runs: Sequence[Run]) -> None:
    """One seed counted twice would make the band too narrow."""
    by_seed: dict[int, Run] = {}
    for run in runs:
        if run.seed is None:
            continue
        twin = by_seed.setdefault(run.seed, run)
        if twin is not run:
            raise RunFolderError(
                f"has the settings and the seed {run.seed} of {twin.folder}",
                where=str(run.folder),
                fix="name one of the two",
            )


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The configurations' names; where two are alike, as many of the settings they differ in as tell them apart."""
    names = []
    labels = [_label(runs[0]) for runs in groups]
    for runs, label in zip(groups, labels, strict=True):
        own = runs[0].settings
        alike = [other[0].settings for other, name in zip(groups, labels, strict=True) if name == label]
        others = [settings for settings in alike if settings != own]
        chosen: list[str] = []
        for key in own:
            apart = [settings for settings in others if settings.get(key) != own[key]]
            if apart:
                chosen.append(key)
                others = [settings for settings in others if settings not in apart]
        names.append(label + (f" ({', '.join(f'{key}={own[key]}' for key in chosen)})" if chosen else ""))
    return names


def _label(run: Run) -> str:
    start = run.log.run_start
    return start.run_name if start and start.run_name else run.folder.name


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Settings in which the groups differ: key -> one value per group, "-" where a group has none."""
    settings = [group.first.settings for group in groups]
    keys = dict.fromkeys(key for of_group in settings for key in of_group)
    rows = {key: [of_group.get(key, "-") for of_group in settings] for key in keys if key != "name"}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


Curve = Callable[[RunLog], Sequence[tuple[int, float | None]]]


def means(group: Group, curve: Curve) -> list[Mean]:
    """Mean and interval at every iteration that all runs of the group have: so all means are over the same seeds."""
    curves = [{at: value for at, value in curve(run.log) if value is not None} for run in group.runs]
    common = sorted(set.intersection(*(set(values) for values in curves)))
    return [over_seeds(at, [values[at] for values in curves]) for at in common]


def over_seeds(iteration: int, values: Sequence[float]) -> Mean:
    """Mean with its t interval; below three seeds there is none: with two, t alone is 12.7."""
    n, middle = len(values), fmean(values)
    if n < MIN_SEEDS:
        return Mean(iteration, middle, None, None, n)
    half = student_quantile(n - 1) * stdev(values) / math.sqrt(n)
    return Mean(iteration, middle, middle - half, middle + half, n)


def group_shares(group: Group) -> StepShares | None:
    """Credit per step of a group: the first run's native weights and target, the measured share's mean and range."""
    found = [shares for run in group.runs if (shares := step_shares(run.log)) is not None]
    own = step_shares(group.first.log)
    if own is None:
        return None
    measured = [shares for shares in found if shares.measured and shares.steps == own.steps]
    return StepShares(
        steps=own.steps,
        native=own.native,
        target=own.target,
        measured=[fmean(column) for column in zip(*(shares.measured for shares in measured), strict=True)],
        low=[min(column) for column in zip(*(shares.low for shares in measured), strict=True)],
        high=[max(column) for column in zip(*(shares.high for shares in measured), strict=True)],
        measurements=sum(shares.measurements for shares in measured),
    )


__all__ = ["Group", "Mean", "Run", "differences", "find_runs", "group_shares", "means", "over_seeds", "read_groups"]
