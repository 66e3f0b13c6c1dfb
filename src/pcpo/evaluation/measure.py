"""All metrics of one set of pictures, as plain records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pcpo.data.prompts import Prompt
from pcpo.errors import EvaluationError
from pcpo.evaluation import alignment as align
from pcpo.evaluation.diversity import pairwise_distance, perceptual_distance, vendi_score
from pcpo.evaluation.features import BATCH, DualEncoder, Features, FeatureSet
from pcpo.evaluation.frechet import frechet_distance, kernel_distance
from pcpo.evaluation.monitors import monitor
from pcpo.rewards.base import evaluate
from pcpo.types import Reward

MAX_GROUP = 16


@dataclass(frozen=True)
class PictureSet:
    """Pictures uint8 [B, 3, H, W] and, where they are known, one prompt per picture."""

    name: str
    images: Tensor
    prompts: tuple[Prompt, ...] | None = None

    @cached_property
    def captions(self) -> list[str]:
        """The distinct prompt texts, in order of appearance."""
        return list(dict.fromkeys(p.text for p in self.prompts or ()))

    @cached_property
    def own(self) -> Tensor:
        """[B] index of each picture's caption."""
        place = {text: k for k, text in enumerate(self.captions)}
        return torch.tensor([place[p.text] for p in self.prompts or ()], dtype=torch.long)


@dataclass(frozen=True)
class Reference:
    """A set to measure distances from: its name, its number of pictures, and its vectors by feature set."""

    name: str
    pictures: int
    pooled: dict[str, Tensor]


@dataclass(frozen=True)
class Distance:
    """Distances of two sets in one feature set; biased: there are not more pictures than dimensions."""

    reference: str
    reference_pictures: int
    frechet: float
    kernel: float
    biased: bool


@dataclass(frozen=True)
class FeatureMetrics:
    """What one feature set says. None: not defined for these pictures (no prompts, one picture per prompt, ...).

    pairwise, perceptual   mean distance of two pictures of one prompt, over all prompts, and over how many pairs
    vendi                  effective number of different pictures in the whole set
    alignment, retrieval   cosine with the own prompt; share of pictures nearest to it, among `captions` prompts
    inception_score        over zero-shot probabilities of the prompts
    """

    features: str
    dimensions: int
    distances: tuple[Distance, ...]
    pairwise: float | None
    pairwise_pairs: int
    perceptual: float | None
    perceptual_pairs: int
    vendi: float
    alignment: float | None
    retrieval: float | None
    inception_score: float | None
    captions: int


@dataclass(frozen=True)
class RewardMetrics:
    """A reward over the pictures that it judged; None where it judged none."""

    reward: str
    mean: float | None
    std: float | None
    pictures: int


@dataclass(frozen=True)
class Evaluation:
    """Everything about one set of pictures; monitors are means over the set (`pcpo.evaluation.monitors`)."""

    name: str
    pictures: int
    prompts: int
    height: int
    width: int
    features: tuple[FeatureMetrics, ...]
    rewards: tuple[RewardMetrics, ...]
    monitors: dict[str, float] = field(default_factory=dict)


def reference_set(pictures: PictureSet, features: Sequence[FeatureSet]) -> Reference:
    """A set of pictures as a reference, its vectors computed once."""
    pooled = {f.name: torch.cat([f(part).pooled for part in pictures.images.split(BATCH)]) for f in features}
    return Reference(pictures.name, len(pictures.images), pooled)


def measure(
    pictures: PictureSet,
    features: Sequence[FeatureSet],
    *,
    references: Sequence[Reference] = (),
    rewards: Mapping[str, Reward] | None = None,
) -> Evaluation:
    """Every metric of a set. Rewards need prompts and are left out without them.

    Distances are to every reference; one of the same size is taken to be paired picture by picture (see
    `pcpo.evaluation.frechet.kernel_distance`). Perceptual distances are over the first 16 pictures of a prompt.

    Raises EvaluationError for fewer than two pictures, ModelError and RewardError from features and rewards.
    """
    images = pictures.images
    if len(images) < 2:
        raise EvaluationError(f"{len(images)} picture(s)", where=pictures.name, fix="give at least two")
    return Evaluation(
        name=pictures.name,
        pictures=len(images),
        prompts=len(pictures.captions),
        height=images.shape[-2],
        width=images.shape[-1],
        features=tuple(_in_feature_set(pictures, f, references) for f in features),
        rewards=tuple(_reward(pictures, name, r) for name, r in (rewards or {}).items()) if pictures.prompts else (),
        monitors=monitor(images),
    )


def _in_feature_set(pictures: PictureSet, features: FeatureSet, references: Sequence[Reference]) -> FeatureMetrics:
    pooled, perceptual = _describe(pictures, features)
    pairs = [pairwise_distance(pooled[rows]) for rows in _groups(pictures)]
    similarity, score = None, None
    if isinstance(features, DualEncoder) and pictures.prompts:
        similarity = features.similarity(Features(pooled), pictures.captions)
        probabilities = align.class_probabilities(similarity, features.logit_scale)
        score = align.inception_score(probabilities) if len(pictures.captions) > 1 else None
    return FeatureMetrics(
        features=features.name,
        dimensions=pooled.shape[1],
        distances=tuple(_distance(pooled, r, features) for r in references),
        pairwise=_mean(pairs),
        pairwise_pairs=sum(map(len, pairs)),
        perceptual=_mean(perceptual),
        perceptual_pairs=sum(map(len, perceptual)),
        vendi=vendi_score(pooled),
        alignment=None if similarity is None else align.alignment(similarity, pictures.own),
        retrieval=None if similarity is None else align.retrieval(similarity, pictures.own),
        inception_score=score,
        captions=len(pictures.captions),
    )


def _describe(pictures: PictureSet, features: FeatureSet) -> tuple[Tensor, list[Tensor]]:
    """Pooled vectors [B, d], and the perceptual distances of the pairs of each prompt; stages are not kept."""
    pooled: list[Tensor] = []
    perceptual: list[Tensor] = []
    order = torch.cat([*_groups(pictures)]) if pictures.prompts else torch.arange(len(pictures.images))
    for batch in _batches(pictures):
        rows = torch.cat(batch)
        out = features(pictures.images[rows], stages=pictures.prompts is not None)
        pooled.append(out.pooled)
        start = 0
        for group in batch:
            kept = slice(start, start + min(len(group), MAX_GROUP))
            start += len(group)
            if out.stages and len(group) > 1:
                perceptual.append(perceptual_distance([stage[kept] for stage in out.stages]))
    return torch.cat(pooled)[order.argsort()], perceptual


def _groups(pictures: PictureSet) -> Iterator[Tensor]:
    """Row numbers of the pictures of each prompt."""
    for k in range(len(pictures.captions)):
        yield (pictures.own == k).nonzero().flatten()


def _batches(pictures: PictureSet) -> Iterator[list[Tensor]]:
    """Whole groups packed into batches of about BATCH pictures."""
    groups = _groups(pictures) if pictures.prompts else iter(torch.arange(len(pictures.images)).split(BATCH))
    batch: list[Tensor] = []
    for group in groups:
        if batch and sum(map(len, batch)) + len(group) > BATCH:
            yield batch
            batch = []
        batch.append(group)
    yield batch


def _distance(pooled: Tensor, reference: Reference, features: FeatureSet) -> Distance:
    other = reference.pooled[features.name]
    return Distance(
        reference=reference.name,
        reference_pictures=reference.pictures,
        frechet=frechet_distance(pooled, other),
        kernel=kernel_distance(pooled, other, scale=1.0 if features.unit else None),
        biased=min(len(pooled), len(other)) <= pooled.shape[1],
    )


def _reward(pictures: PictureSet, name: str, reward: Reward) -> RewardMetrics:
    prompts = pictures.prompts or ()
    result = evaluate(reward, pictures.images, [p.text for p in prompts], [p.metadata for p in prompts], name=name)
    scored = result.values[result.valid].double()
    if not len(scored):
        return RewardMetrics(name, None, None, 0)
    return RewardMetrics(name, float(scored.mean()), float(scored.std(correction=0)), len(scored))


def _mean(parts: Sequence[Tensor]) -> float | None:
    """Mean over prompts of the means over their pairs; None without a pair."""
    means = [part.mean() for part in parts if len(part)]
    return float(torch.stack(means).mean()) if means else None


__all__ = [
    "Distance",
    "Evaluation",
    "FeatureMetrics",
    "PictureSet",
    "Reference",
    "RewardMetrics",
    "measure",
    "reference_set",
]
