"""Calling a reward that somebody else wrote: one finite number per picture comes out, or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcpo.errors import PCPOError, RewardError, one_line
from pcpo.types import Reward, RewardResult


class NonFiniteReward(RewardError):
    """A reward that returned NaN or infinity for `pictures`, indices into what it was given."""

    def __init__(self, what: str, pictures: Sequence[int], *, where: str = "", fix: str = "") -> None:
        self.pictures = list(pictures)
        super().__init__(what, where=where, fix=fix)


def evaluate(
    reward: Reward,
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    *,
    name: str = "reward",
) -> RewardResult:
    """Score images uint8 [B, 3, H, W] and check the answer.

    ``reward`` gets copies on the CPU, so it cannot change what the caller holds. It may return a
    RewardResult, [B] numbers (tensor, array, list, tuple), or a pair (numbers, info) with info a mapping
    of named [B] numbers.

    Returns a RewardResult of CPU tensors: values [B] float32, valid [B] bool, info [B] float32 each. Only a
    RewardResult can abstain (valid False); there values are 0, and info too where it is not finite.

    Raises RewardError, naming ``name``, when the reward raises, returns nothing, another shape or type, and its
    subclass NonFiniteReward for a number that is not finite in float32 where it does not abstain.
    """
    where = f"reward {name!r}"
    _check_batch(images, prompts, metadata, where)
    # a read-only promise would not hold: a reward may hand the memory on to numpy or Pillow
    copies = images.detach().to("cpu", copy=True)
    try:
        returned = reward(copies, list(prompts), [dict(entry) for entry in metadata])
    except PCPOError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may fail in any way
        raise RewardError(
            f"raised {type(error).__name__}: {one_line(error)}",
            where=where,
            fix="mend the reward; `check_reward` shows what it does on small pictures",
        ) from error
    return as_result(returned, list(prompts), where=where)


def ready(reward: Reward) -> None:
    """Call ``reward.ready()`` where there is one: a reward that depends on something outside says whether it is there.

    It should take a few seconds at most, and raise RewardError when the reward could not score now.
    """
    ask = getattr(reward, "ready", None)
    if callable(ask):
        ask()


def as_result(returned: Any, prompts: Sequence[str], *, where: str) -> RewardResult:
    """Turn what a reward returned for B prompts into a checked RewardResult (see `evaluate`)."""
    valid: Any = None
    info: Any = {}
    if isinstance(returned, RewardResult):
        returned, valid, info = returned.values, returned.valid, returned.info
    elif isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping):
        returned, info = returned
    if not isinstance(info, Mapping):
        raise RewardError(f"info is {_kind(info)}", where=where, fix="return a mapping of named numbers [B]")
    size = len(prompts)
    mask = torch.ones(size, dtype=torch.bool) if valid is None else _as_mask(valid, size, where)
    values = _as_numbers(returned, size, where)
    _check_finite(values, mask, prompts, where)
    parts = {}
    for key, part in info.items():
        place = f"{where}, info {key!r}"
        numbers = _as_numbers(part, size, place)
        _check_finite(numbers, mask, prompts, place)
        parts[str(key)] = torch.where(numbers.isfinite(), numbers, 0.0)
    return RewardResult(torch.where(mask, values, 0.0), mask, parts)


def _kind(value: Any) -> str:
    """A short description of a returned object for a message."""
    return "None" if value is None else f"of type {type(value).__name__}"


def _check_batch(images: Tensor, prompts: Sequence[str], metadata: Sequence[Any], where: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise RewardError(
            f"called with images {images.dtype} {tuple(images.shape)}",
            where=where,
            fix="give uint8 [B, 3, H, W]",
        )
    if not len(images) == len(prompts) == len(metadata):
        raise RewardError(
            f"called with {len(images)} images, {len(prompts)} prompts and {len(metadata)} metadata entries",
            where=where,
            fix="give one prompt and one mapping per image",
        )


def _as_numbers(values: Any, size: int, where: str) -> Tensor:
    """[size] float32 on the CPU."""
    fix = f"return one number per picture, shape ({size},)"
    try:
        if isinstance(values, Tensor):
            if values.is_complex():
                raise RewardError(f"returned dtype {values.dtype}", where=where, fix=fix)
            tensor = values.detach().to("cpu", torch.float32, copy=True)
        elif isinstance(values, np.ndarray):
            if values.dtype.kind not in "fiub":
                raise RewardError(f"returned an array of dtype {values.dtype}", where=where, fix=fix)
            tensor = torch.from_numpy(values.astype(np.float64)).float()
        elif isinstance(values, list | tuple):
            tensor = torch.tensor([_as_float(v, n) for n, v in enumerate(values)], dtype=torch.float32)
        else:
            raise RewardError(f"returned {_article(values)}", where=where, fix=fix)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise RewardError(f"returned what is not numbers ({one_line(error)})", where=where, fix=fix) from error
    if tensor.shape != (size,):
        raise RewardError(f"returned shape {tuple(tensor.shape)} instead of ({size},)", where=where, fix=fix)
    return tensor


def _as_float(value: Any, place: int) -> float:
    """One element of a list: a number, or a tensor or array without axes."""
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim:
            raise TypeError(f"element {place} has shape {tuple(value.shape)}")
        value = value.item()
    if not isinstance(value, Real | np.bool_):
        raise TypeError(f"element {place} is {_kind(value)}")
    return float(value)


def _article(values: Any) -> str:
    if values is None:
        return "None"
    if isinstance(values, Real):
        return f"the single number {values}"
    return f"a {type(values).__name__}"


def _as_mask(valid: Any, size: int, where: str) -> Tensor:
    """[size] bool on the CPU."""
    fix = f"give RewardResult.valid as bool, shape ({size},)"
    try:
        mask = torch.as_tensor(valid).detach().to("cpu", copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(f"valid is {_kind(valid)}", where=where, fix=fix) from error
    if mask.dtype != torch.bool or mask.shape != (size,):
        raise RewardError(f"valid is {mask.dtype} {tuple(mask.shape)}", where=where, fix=fix)
    return mask


def _check_finite(values: Tensor, mask: Tensor, prompts: Sequence[str], where: str) -> None:
    bad = (mask & ~values.isfinite()).nonzero().flatten()
    if len(bad):
        place = int(bad[0])
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NonFiniteReward(
            f"returned {values[place].item()} at picture {place}{more}, prompt {prompts[place][:80]!r}",
            bad.tolist(),
            where=where,
            fix="return finite numbers, or abstain with RewardResult.valid = False",
        )


__all__ = ["NonFiniteReward", "as_result", "evaluate", "ready"]
