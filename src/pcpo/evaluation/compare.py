"""Several sources under one sampling: runs, models and folders of pictures, with the same prompts and noises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pcpo.data.prompts import Prompt
from pcpo.errors import EvaluationError, RunFolderError
from pcpo.evaluation.features import FeatureSet
from pcpo.evaluation.folder import read_folder
from pcpo.evaluation.iterations import split_source
from pcpo.evaluation.measure import Evaluation, PictureSet, Reference, measure, reference_set
from pcpo.evaluation.sampling import DEFAULT, Placement, load_base, load_for_sampling, load_run, run_config, sample_set
from pcpo.models.base import Adapter
from pcpo.models.folders import read_header
from pcpo.models.loading import adapter_class
from pcpo.trainer.config import Config
from pcpo.types import Reward

BASE = "base"
Advance = Callable[[int], None]


def no_progress(done: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Sampling:
    """How every source is sampled: `count` pictures per prompt, deterministic, noises by (seed, prompt, number).

    Raises EvaluationError for fewer than two pictures in all: a set of one has nothing to measure.
    """

    prompts: Sequence[Prompt]
    count: int = 4
    steps: int = 20
    guidance_scale: float = 5.0
    seed: int = 0
    batch: int = 16

    def __post_init__(self) -> None:
        if len(self.prompts) * self.count < 2:
            raise EvaluationError("one picture is no set", where="sampling", fix="give more prompts or --count")

    @property
    def work(self) -> int:
        """Pictures x steps of one source."""
        return len(self.prompts) * self.count * self.steps

    def to_json(self) -> dict[str, Any]:
        """What the pictures depend on, as plain data."""
        return {
            "prompts": [prompt.text for prompt in self.prompts],
            "count": self.count,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
        }

    def pictures(self, name: str, adapter: Adapter, advance: Advance = no_progress) -> PictureSet:
        """The pictures of a loaded model."""
        images = sample_set(
            adapter,
            self.prompts,
            count=self.count,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            batch=self.batch,
            advance=advance,
        )
        return PictureSet(name, images, tuple(p for p in self.prompts for _ in range(self.count)))


@dataclass
class Comparer:
    """Measures sources one after the other; base models and references are sampled and encoded once.

    features    feature sets, see `pcpo.evaluation.features.load_features`
    rewards     rewards by the name to report them under
    references  sources to measure distances from; "base" is each run's own base model
    """

    sampling: Sampling
    features: Sequence[FeatureSet]
    rewards: Mapping[str, Reward] = field(default_factory=dict)
    references: Sequence[str] = (BASE,)
    advance: Advance = no_progress
    placement: Placement = DEFAULT
    _bases: dict[str, tuple[PictureSet, Reference]] = field(default_factory=dict)
    _others: dict[str, Reference] = field(default_factory=dict)

    def evaluate(self, source: str) -> Evaluation:
        """A run folder, a model or a folder of pictures; a model that a run beside it was tuned from is its base."""
        config = run_config(split_source(source)[0]) or self.placement.tuned_from(source)
        return self.measure(self._pictures(source), config)

    def evaluate_run(self, run: Path, config: Config, weights: Path, name: str) -> Evaluation:
        """A run with the tuned weights saved in `weights`: a folder that `save_tuned` wrote, or a checkpoint."""
        checkpoint = weights.parent == run / "checkpoints"
        if checkpoint:
            adapter = load_for_sampling(f"{run}@{weights.name}", self.placement)
        else:
            adapter = load_run(run, config, weights, self.placement)
        return self.measure(self.sampling.pictures(name, adapter, self.advance), config)

    def evaluate_base(self, config: Config) -> Evaluation:
        """The base model of a run; it is its own reference, so its distance to it is 0."""
        return self.measure(self._base(config)[0], config)

    def measure(self, pictures: PictureSet, config: Config | None = None) -> Evaluation:
        """A set of pictures; `config` is that of the run that made them, None if none did."""
        found = [self._reference(name, config, pictures) for name in self.references]
        return measure(pictures, self.features, references=[r for r in found if r is not None], rewards=self.rewards)

    def _pictures(self, source: str, size: tuple[int, int] | None = None) -> PictureSet:
        if is_picture_folder(source):
            return read_folder(Path(source), size)
        if (run := self.placement.tuned_from(source)) is not None:
            return replace(self._base(run)[0], name=source)
        return self.sampling.pictures(source, load_for_sampling(source, self.placement), self.advance)

    def _base(self, config: Config) -> tuple[PictureSet, Reference]:
        settings = config.model
        key = f"{settings.path} {settings.resolution} {settings.max_sequence_length}"
        if key not in self._bases:
            made = self.sampling.pictures(f"{BASE} {settings.path}", load_base(config, self.placement), self.advance)
            self._bases[key] = made, reference_set(made, self.features)
        return self._bases[key]

    def _reference(self, name: str, config: Config | None, pictures: PictureSet) -> Reference | None:
        if name == BASE:
            if config is not None:
                return self._base(config)[1]
            # a model or folder beside runs of one base is compared with that base
            return next(iter(self._bases.values()))[1] if len(self._bases) == 1 else None
        if name not in self._others:
            height, width = pictures.images.shape[-2:]
            self._others[name] = reference_set(self._pictures(name, (height, width)), self.features)
        return self._others[name]


def is_picture_folder(source: str) -> bool:
    """Whether `source` is a folder that is neither a run nor a model."""
    path = Path(source)
    return path.is_dir() and not any((path / name).is_file() for name in ("config.yaml", "model_index.json"))


def check_source(source: str) -> Config | None:
    """Refuse a source that cannot be measured before any weight is loaded; the configuration where it is a run.

    Raises RunFolderError for a run without tuned weights, ModelError for what is no model.
    """
    folder, iteration = split_source(source)
    config = run_config(folder)
    if config is None:
        if not is_picture_folder(source):
            adapter_class(read_header(source))
    elif iteration is None and not has_weights(Path(folder)):
        raise RunFolderError("holds no tuned weights yet", where=folder, fix="finish the run with --resume")
    return config


def has_weights(folder: Path) -> bool:
    """Whether `save_tuned` has written into a folder."""
    return any((folder / name).is_dir() for name in ("lora", "unet", "transformer"))


def held_out(prompts: Sequence[Prompt], training: Sequence[Prompt]) -> list[Prompt]:
    """The prompts whose text no training prompt has. Raises EvaluationError when none is left."""
    seen = {p.text for p in training}
    kept = [p for p in prompts if p.text not in seen]
    if not kept:
        raise EvaluationError(
            "all of them are training prompts", where="held-out prompts", fix="give others, such as heldout50"
        )
    return kept


__all__ = [
    "BASE",
    "Comparer",
    "Sampling",
    "check_source",
    "has_weights",
    "held_out",
    "is_picture_folder",
    "no_progress",
]
