"""Try a reward on small pictures and say what is wrong with it, before a training run finds out."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pcpo.data.prompts import Prompt
from pcpo.errors import PCPOError, PromptError, one_line
from pcpo.rewards.base import as_result
from pcpo.rewards.registry import check_prompts
from pcpo.types import Reward, RewardResult

PROMPTS = ("a red apple", "a blue car", "a cat", "the sun over the sea", "a green tree", "a house")
WRITTEN = ("APPLE", "CAR", "CAT", "SUN", "TREE", "HOUSE")
TOLERANCE = 1e-3  # relative; batched matrix products differ by about 1e-6


def check_reward(
    reward: Reward,
    *,
    images: Tensor | None = None,
    prompts: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    max_seconds: float = 1.0,
) -> list[str]:
    """Findings, one line each, that start with a fixed word; an empty list means that nothing was found.

    not-callable, raises, bad-return   it cannot be used: nothing further is tried
    mutates       it writes to the pictures, prompts or metadata it is given
    wrong-device  it returns a tensor that is not on the CPU
    gradient      it returns a tensor that carries a graph, which holds memory
    random        the same input gave two answers: it is random, or keeps state
    global-seed   it changes the global random state of torch, numpy or random
    single        it fails on a batch of one picture
    batch         the value of a picture depends on the others in its batch
    abstains      it abstains on every picture
    constant      different pictures all got the same value: nothing could be learned
    slow          it takes over ``max_seconds`` per picture, after a first call that may load a model

    images uint8 [B, 3, H, W], prompts and metadata default to six small pictures; a reward that refuses plain prompts
    by its `check_prompts` gets prompts that quote a text, and pictures of text. Runs the reward's code, as training
    does; global random states are put back afterwards.
    """
    if not callable(reward):
        return [f"not-callable: it is of type {type(reward).__name__}; pass a function or an object with __call__"]
    probe = _Probe(reward, images, prompts, metadata)
    states = _random_states()
    findings: list[str] = []
    try:
        probe.call(range(probe.size), findings)
        first = probe.result
        if first is None:
            return findings
        if not _same_states(states, _random_states()):
            findings.append("global-seed: it changes the global random state; use a generator of its own")
        again: list[str] = []
        probe.call(range(probe.size), again)
        if probe.result is None:
            return [*findings, *again]
        if probe.seconds > max_seconds * probe.size:
            findings.append(f"slow: {probe.seconds / probe.size:.2f} s per picture")
        findings += _judge_values(first, probe.result)
        if not any(finding.startswith("random") for finding in findings):
            findings += _judge_batches(probe, first)
    finally:
        _restore(states)
    return findings


class _Probe:
    """Calls a reward on rows of a fixed batch; `result` is None after a call that cannot be used."""

    def __init__(
        self,
        reward: Reward,
        images: Tensor | None,
        prompts: Sequence[str] | None,
        metadata: Sequence[Mapping[str, Any]] | None,
    ) -> None:
        self.reward = reward
        reads = prompts is None and metadata is None and _refuses_plain_prompts(reward)
        if images is None:
            images = written_pictures() if reads else probe_pictures()
        self.images, self.size = images, len(images)
        # half of the pictures show another text than is asked for
        texts = [f'a sign that says "{word}"' for word in (*WRITTEN[:3], *WRITTEN[:3])] if reads else PROMPTS
        self.prompts = [texts[i % len(texts)] for i in range(self.size)] if prompts is None else list(prompts)
        self.metadata = [{} for _ in range(self.size)] if metadata is None else [dict(m) for m in metadata]
        self.result: RewardResult | None = None
        self.seconds = 0.0

    def call(self, rows: Sequence[int], findings: list[str]) -> None:
        """Append what this call shows to ``findings``."""
        self.result = None
        images = self.images[list(rows)].clone()
        prompts, metadata = [self.prompts[i] for i in rows], [dict(self.metadata[i]) for i in rows]
        given = images.clone(), list(prompts), [dict(m) for m in metadata]
        start = time.perf_counter()
        try:
            returned = self.reward(images, prompts, metadata)
        except Exception as error:  # the point of the call is to see what it does
            findings.append(f"raises: {type(error).__name__}: {one_line(error)}")
            return
        self.seconds = time.perf_counter() - start
        if not torch.equal(images, given[0]) or (prompts, metadata) != given[1:]:
            findings.append("mutates: it writes to its input; work on a copy")
        findings += _judge_tensor(returned)
        try:
            self.result = as_result(returned, given[1], where="bad-return")
        except PCPOError as error:
            findings.append(str(error))


def _judge_tensor(returned: Any) -> list[str]:
    if isinstance(returned, tuple) and returned:
        returned = returned[0]
    values = returned.values if isinstance(returned, RewardResult) else returned
    findings = []
    if isinstance(values, Tensor) and values.device.type != "cpu":
        findings.append(f"wrong-device: it returns a tensor on {values.device}; move it with .cpu()")
    if isinstance(values, Tensor) and values.requires_grad:
        findings.append("gradient: it returns a tensor with a graph; compute it under torch.no_grad()")
    return findings


def _judge_values(first: RewardResult, second: RewardResult) -> list[str]:
    findings = []
    if not torch.equal(first.values, second.values) or not torch.equal(first.valid, second.valid):
        findings.append("random: the same input gave two answers; it is random or keeps state between calls")
    scored = first.values[first.valid]
    if len(scored) == 0:
        findings.append("abstains: it abstains on every picture")
    elif len(scored) > 1 and bool((scored == scored[0]).all()):
        findings.append(f"constant: every picture got {scored[0].item():g}")
    return findings


def _judge_batches(probe: _Probe, whole: RewardResult) -> list[str]:
    """Compare the value of each picture in the whole batch with its value alone."""
    for row in range(probe.size):
        findings: list[str] = []
        probe.call([row], findings)
        if probe.result is None:
            return [f"single: a batch of one picture fails ({findings[-1]})"]
        alone, together = probe.result.values[0], whole.values[row]
        close = bool((alone - together).abs() <= TOLERANCE * torch.maximum(alone.abs(), together.abs()))
        if not close or probe.result.valid[0] != whole.valid[row]:
            return [f"batch: picture {row} got {together.item():g} in a batch and {alone.item():g} alone"]
    return []


def _refuses_plain_prompts(reward: Any) -> bool:
    try:
        check_prompts(reward, [Prompt(text) for text in PROMPTS], "checked")
    except PromptError:
        return True
    except PCPOError:  # another fault of its own, which a call will show
        return False
    return False


def written_pictures() -> Tensor:
    """Six words in black on white, uint8 [6, 3, 96, 256]."""
    pictures = []
    for word in WRITTEN:
        picture = Image.new("RGB", (256, 96), "white")
        ImageDraw.Draw(picture).text((20, 20), word, font=ImageFont.load_default(48), fill="black")
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(pictures)


def probe_pictures() -> Tensor:
    """Six pictures, uint8 [6, 3, 64, 64]: noise, coarse noise, a ramp, black, red, a blue disc on white."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)
    coarse = torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)
    blocks = coarse.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    line = torch.arange(64)
    ramp = (line * 4).to(torch.uint8).expand(3, 64, 64)
    black = torch.zeros_like(ramp)
    red = black.clone()
    red[0] = 220
    disc = torch.full_like(red, 255)
    disc[:2, (line[:, None] - 32) ** 2 + (line - 32) ** 2 < 400] = 30
    return torch.stack([noise, blocks, ramp, black, red, disc])


def _random_states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _same_states(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    same_numpy = all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    return torch.equal(a[0], b[0]) and same_numpy and a[2] == b[2]


def _restore(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


__all__ = ["check_reward", "probe_pictures"]
