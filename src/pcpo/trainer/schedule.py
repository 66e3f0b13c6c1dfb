"""Which steps are trained, and in which micro-batches: pure functions of the configuration, seed and iteration."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pcpo.errors import ConfigError
from pcpo.trainer.config import TrainSettings
from pcpo.types import StepStats


def eligible_steps(stats: StepStats, train: TrainSettings) -> Tensor:
    """Grid indices [E] of the steps that may be trained: those with noise, within train.within or the first ones.

    The credit target is computed over these, so that a random set or window does not change a step's weight.
    Raises ConfigError when none is left.
    """
    steps = stats.index[stats.std > 0]
    if train.within is not None:
        start, stop = (round(len(stats) * share) for share in train.within)
        steps = steps[(steps >= start) & (steps < stop)]
    if train.select == "first":
        steps = steps[steps < int(len(stats) * train.fraction)]
    if len(steps) == 0:
        name, share = ("fraction", train.fraction) if train.within is None else ("within", train.within)
        raise ConfigError(
            f"no step of this sampler is stochastic within train.{name} {share}: nothing would be trained",
            where=f"train.{name}",
        )
    return steps


def inclusion(weights: Tensor, count: int) -> Tensor:
    """Probabilities [E] of taking each step, in proportion to its weight [E] > 0 and 1 at most; they sum to `count`."""
    certain = torch.zeros(len(weights), dtype=torch.bool)
    while True:
        left = count - int(certain.sum())
        share = torch.where(certain, 1.0, left * weights / weights[~certain].sum())
        more = (share > 1) & ~certain
        if not more.any():
            return share
        certain |= more


def systematic(probability: Tensor, offset: float) -> Tensor:
    """Indices, ascending, at which the running sum of the probabilities [E] passes offset, offset + 1, ...

    With the offset uniform in [0, 1) each index is taken with its probability; their number is the sum, a whole one.
    """
    count = round(float(probability.sum()))
    marks = offset + torch.arange(count, dtype=torch.float64)
    return torch.searchsorted(probability.cumsum(0), marks, right=True).clamp_max(len(probability) - 1)


def trained_steps(
    eligible: Tensor, train: TrainSettings, seed: int, iteration: int, weights: Tensor | None = None
) -> Tensor:
    """Grid indices [S], ascending, of the steps trained in one iteration; weights [E] for select=credit."""
    if train.select in ("all", "first"):
        return eligible
    count = max(1, int(len(eligible) * train.fraction))
    generator = torch.Generator().manual_seed((seed << 32) + iteration)
    if train.select == "credit" and weights is not None:
        offset = float(torch.rand((), generator=generator, dtype=torch.float64))
        return eligible[systematic(inclusion(weights, count), offset)]
    if train.select == "window":
        start = int(torch.randint(len(eligible) - count + 1, (1,), generator=generator))
        return eligible[start : start + count]
    return eligible[torch.randperm(len(eligible), generator=generator)[:count].sort().values]


def minibatches(pictures: Tensor, updates: int, seed: int, iteration: int, epoch: int) -> list[Tensor]:
    """Split picture indices [B] into `updates` equal parts, shuffled when there is more than one.

    Where a filter has left fewer pictures than updates, there are fewer parts: none is empty.
    """
    if updates > 1:
        generator = torch.Generator().manual_seed((seed << 32) + (iteration << 8) + epoch)
        pictures = pictures[torch.randperm(len(pictures), generator=generator)]
    return [part for part in pictures.tensor_split(updates) if len(part)]


def own_rows(pictures: Tensor, rows: slice) -> Tensor:
    """Those of the picture indices [N] that are in `rows`, in the same order, counted from its start."""
    return pictures[(pictures >= rows.start) & (pictures < rows.stop)] - rows.start


def count_calls(pictures: int, num_steps: int, size: int) -> int:
    """How many pairs of tensors `micro_batches` gives."""
    whole, rest = divmod(pictures, size)
    return whole * num_steps + -(-rest * num_steps // size)


def micro_batches(pictures: Tensor, num_steps: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(picture index, trained-step position) pairs of a minibatch, at most `size` a model call.

    Pairs run step by step over the same pictures, so with `size` equal to the rollout's call the network sees the same
    batches as when sampling, and the first log-ratio is 0 bit for bit.
    """
    for part in pictures.split(size) if len(pictures) else ():
        position = torch.arange(num_steps).repeat_interleave(len(part))
        yield from zip(part.repeat(num_steps).split(size), position.split(size), strict=True)
