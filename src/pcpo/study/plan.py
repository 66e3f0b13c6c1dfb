"""The study file: models x rewards x arms x seeds, and the ordinary run configuration of every cell.

Layers of a cell, each laid on the one before: a preset (the arm's, else the model's, else the base's), then `set` of
the base, the model, the reward and the arm. So a `set` beats every preset, and what the base sets holds in all arms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from pcpo.errors import ConfigError, PCPOError, unknown_name
from pcpo.trainer.config import Config, Section
from pcpo.trainer.configfile import apply_overrides, explain, merge, read_source, read_yaml, validate
from pcpo.trainer.runfolder import flat

Axis = Literal["seed", "model", "reward", "arm"]
AXES: tuple[Axis, ...] = ("seed", "model", "reward", "arm")
# What the runner sets itself: an arm or a model may not.
OWN_KEYS = ("name", "run.output", "run.seed")


def nested(value: Any) -> Any:
    """Settings as a nested mapping: from a list of `a.b=c`, or a mapping whose keys may be dotted."""
    if value is None:
        return {}
    if isinstance(value, list):
        return apply_overrides({}, [str(part) for part in value])
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    for key, inner in value.items():
        first, *rest = reversed(str(key).split("."))
        entry: dict[str, Any] = {first: nested(inner) if isinstance(inner, dict) else inner}
        for part in rest:
            entry = {part: entry}
        out = merge(out, entry)
    return out


def _not_own(settings: dict[str, Any]) -> dict[str, Any]:
    for key in OWN_KEYS:
        if key in flat(settings):
            raise ValueError(f"{key} is set by the study itself, cell by cell")
    return settings


# No "--" inside: it parts the names in a cell's folder.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*$", max_length=48)]
Settings = Annotated[dict[str, Any], BeforeValidator(nested), AfterValidator(_not_own)]


class _Entry(Section):
    """A part of the study file that may be left empty."""

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return {} if value is None else value


class Base(_Entry):
    """What all cells share."""

    preset: str | None = Field(None, description="where the settings start")
    set: Settings = Field(default_factory=dict, description="settings of every cell")


class Arm(_Entry):
    """One method."""

    preset: str | None = Field(None, description="starts from this preset instead of the model's or the base's")
    set: Settings = Field(default_factory=dict, description="what makes this arm; beats all other settings")


class Model(_Entry):
    """One model."""

    path: str | None = Field(None, description="model.path; null: the preset's")
    preset: str | None = Field(None, description="starts from this preset instead of the base's")
    set: Settings = Field(default_factory=dict, description="settings of this model's cells")
    arms: list[Name] | None = Field(None, min_length=1, description="the arms that this model has; null: all")


class RewardEntry(_Entry):
    """One reward, as in a run's `reward`; a text alone stands for its name."""

    reward: str | dict[str, Any] | list[Any] | None = Field(None, description="null: the built-in of the entry's name")
    set: Settings = Field(default_factory=dict, description="settings of this reward's cells")

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return {"reward": value} if isinstance(value, str) else value


class Targets(_Entry):
    """Evaluation rewards to be reached; without any, the report takes shares .5 and .8."""

    absolute: list[float] = Field(default_factory=list, description="values of the evaluation reward")
    rise: list[float] = Field(default_factory=list, description="relative to the value before training: 0.1 is 10 %")
    share: list[float] = Field(
        default_factory=list, description="of the baseline's mean rise up to the end: 0.8 is 80 % of it"
    )


class Filter(_Entry):
    """Cells that have one of these values on every axis given."""

    seed: list[int] | None = None
    model: list[Name] | None = None
    reward: list[Name] | None = None
    arm: list[Name] | None = None

    def matches(self, **place: Any) -> bool:
        """Whether a cell's place (seed, model, reward, arm) is in this filter."""
        return all(wanted is None or place[axis] in wanted for axis, wanted in self)


class Study(Section):
    """A study file."""

    name: Name = Field(description="title of the report")
    base: Base = Base()
    models: dict[Name, Model] = Field(min_length=1)
    rewards: dict[Name, RewardEntry] = Field(min_length=1)
    arms: dict[Name, Arm] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=1 << 32)]] = Field(min_length=1)
    baseline: Name | None = Field(None, description="the arm that others are compared with; null: the first")
    targets: dict[Name, Targets] = Field(default_factory=dict, description="by reward")
    only: list[Filter] | None = Field(None, description="run only cells that match one of these")
    skip: list[Filter] = Field(default_factory=list, description="leave out cells that match one of these")
    order: list[Axis] = Field(
        list(AXES), description="axes from the slowest to the fastest; with seed first, any prefix is balanced"
    )

    @model_validator(mode="after")
    def _names_exist(self) -> Study:
        known = {"arm": set(self.arms), "model": set(self.models), "reward": set(self.rewards)}
        used = [("baseline", "arm", [self.baseline] if self.baseline else []), ("targets", "reward", self.targets)]
        used += [(f"models.{name}.arms", "arm", model.arms or []) for name, model in self.models.items()]
        for part, filters in (("only", self.only or []), ("skip", self.skip)):
            used += [(part, axis, getattr(f, axis) or []) for f in filters for axis in known]
        for where, axis, names in used:
            for name in names:
                if name not in known[axis]:
                    raise ValueError(f"{where}: no {axis} {name!r} here; known: {', '.join(sorted(known[axis]))}")
        if sorted(self.order) != sorted(AXES):
            raise ValueError(f"order: give each of {', '.join(AXES)} once")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: one is given twice")
        return self

    def values_of(self, axis: str) -> list[Any]:
        """The seeds, or the names of the models, rewards or arms, in the file's order."""
        return list({"seed": self.seeds, "model": self.models, "reward": self.rewards, "arm": self.arms}[axis])

    def arms_of(self, model: str) -> list[str]:
        """The arms of a model, in the file's order."""
        chosen = self.models[model].arms
        return [arm for arm in self.arms if chosen is None or arm in chosen]

    def baseline_of(self, model: str) -> str:
        """The arm that a model's others are compared with: `baseline` where the model has it, else its first."""
        arms = self.arms_of(model)
        return self.baseline if self.baseline in arms else arms[0]

    def against(self, arm: str) -> Study:
        """The same study with another baseline. Raises ConfigError for an arm that it has not."""
        if arm not in self.arms:
            raise unknown_name("arm of this study", arm, list(self.arms))
        return self.model_copy(update={"baseline": arm})


@dataclass(frozen=True)
class Cell:
    """One run of a study. `difference`: dotted key -> (value in the baseline arm, value here)."""

    model: str
    reward: str
    arm: str
    seed: int
    config: Config
    folder: Path
    difference: Mapping[str, tuple[Any, Any]]

    @property
    def name(self) -> str:
        """MODEL--REWARD--ARM--SEED."""
        return self.folder.name


def load_study(path: str | Path) -> Study:
    """Read a study file. Raises ConfigError with one line that names the key and the remedy."""
    path = Path(path)
    try:
        return Study.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(explain(error, Study), where=str(path)) from None


def make_cells(study: Study, output: Path) -> list[Cell]:
    """Every cell in the order in which it is to be run, with a validated configuration.

    Raises PCPOError that names the cell whose settings are refused, or ConfigError when no cell is left.
    """
    cells = []
    for values in itertools.product(*(study.values_of(axis) for axis in study.order)):
        place: dict[str, Any] = dict(zip(study.order, values, strict=True))
        if place["arm"] not in study.arms_of(place["model"]):
            continue
        if study.only is not None and not any(f.matches(**place) for f in study.only):
            continue
        if not any(f.matches(**place) for f in study.skip):
            cells.append(_cell(study, output, **place))
    if not cells:
        raise ConfigError("no cell is left", where="only, skip", fix="loosen the filters")
    return cells


def narrow(study: Study, cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that every filter `AXIS=VALUE,VALUE` lets through; AXIS is model, reward, arm or seed.

    Raises ConfigError for an axis or a value that the study has not, and when no cell is left.
    """
    for text in only:
        axis, _, values = text.partition("=")
        if axis not in AXES or not values:
            raise ConfigError(
                f"{text!r} is no filter", where="--only", fix=f"write AXIS=VALUE,VALUE with one of {', '.join(AXES)}"
            )
        named = values.split(",")
        known = [str(value) for value in study.values_of(axis)]
        for value in named:
            if value not in known:
                raise unknown_name(f"{axis} of this study", value, known)
        cells = [cell for cell in cells if str(getattr(cell, axis)) in named]
    if not cells:
        raise ConfigError("no cell is left", where="--only", fix="loosen the filters")
    return list(cells)


def _cell(study: Study, output: Path, model: str, reward: str, arm: str, seed: int) -> Cell:
    folder = output / "cells" / f"{model}--{reward}--{arm}--{seed}"
    config = _config(study, folder, model, reward, arm, seed)
    base = flat(_config(study, folder, model, reward, study.baseline_of(model), seed).model_dump(mode="json"))
    here = flat(config.model_dump(mode="json"))
    difference = {
        key: (base.get(key), here.get(key))
        for key in sorted(base.keys() | here.keys())
        if base.get(key) != here.get(key) and key not in OWN_KEYS
    }
    return Cell(model, reward, arm, seed, config, folder, difference)


def _config(study: Study, folder: Path, model: str, reward: str, arm: str, seed: int) -> Config:
    entry, method, scored = study.models[model], study.arms[arm], study.rewards[reward]
    with refusals(folder.name):
        preset = method.preset or entry.preset or study.base.preset
        data = read_source(preset) if preset else {}
        data = merge(data, study.base.set)
        data = merge(data, entry.set)
        if entry.path is not None:
            data = merge(data, {"model": {"path": entry.path}})
        data["reward"] = scored.reward or reward
        data = merge(merge(data, scored.set), method.set)
        data = merge(data, {"name": arm, "run": {"seed": seed, "output": str(folder)}})
        return validate(data)


@contextmanager
def refusals(cell: str) -> Iterator[None]:
    """Inside, an error that a user can mend names the cell too."""
    try:
        yield
    except PCPOError as error:
        where = f"cell {cell}: {error.where}" if error.where else f"cell {cell}"
        raise type(error)(error.what, where=where, fix=error.fix) from error
