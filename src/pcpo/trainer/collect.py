"""The first half of an iteration: prompts -> groups -> rollout -> pictures -> rewards -> advantages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pcpo.data.prompts import Prompt
from pcpo.models.base import Adapter, Conditioning
from pcpo.samplers.base import Sampler
from pcpo.samplers.noise import noise_batch
from pcpo.samplers.rollout import rollout, sample
from pcpo.trainer.guard import Where, check
from pcpo.trainer.step import Policy
from pcpo.types import StepStats, Trajectory

# Evaluation noises are the same in every run, whatever its seed, so that runs compare picture by picture.
EVALUATION_SEED = 20250917


@dataclass(frozen=True)
class Request:
    """Which pictures to sample: prompts of the B pictures, their noise identities, and the group they belong to.

    sample_ids [B] name the noise of a picture within (seed, prompt); first_ids [B] name its initial noise.
    """

    prompts: list[Prompt]
    prompt_index: Tensor
    sample_ids: list[int]
    first_ids: list[int]
    seed: int

    @property
    def texts(self) -> list[str]:
        """One prompt text per picture [B]."""
        return [self.prompts[i].text for i in self.prompt_index.tolist()]

    def metadata(self, rows: slice) -> list[Mapping[str, Any]]:
        """Of the prompts of some pictures."""
        return [self.prompts[i].metadata for i in self.prompt_index[rows].tolist()]

    def noise(self, step: int, shape: tuple[int, ...], rows: slice) -> Tensor:
        """Noise [n, ...] of one step for some pictures; step -1 is the initial noise."""
        ids = self.first_ids if step < 0 else self.sample_ids
        return noise_batch(self.seed, self.texts[rows], ids[rows], step, shape)


def training_request(prompts: list[Prompt], group_size: int, seed: int, iteration: int, same_noise: bool) -> Request:
    """P prompts x G pictures, prompt-major, with noise that no other iteration uses."""
    count = len(prompts) * group_size
    index = torch.arange(len(prompts)).repeat_interleave(group_size)
    ids = [iteration * count + b for b in range(count)]
    first = [b - b % group_size for b in ids] if same_noise else ids
    return Request(prompts, index, ids, first, seed)


def evaluation_request(prompts: list[Prompt], per_prompt: int) -> Request:
    """The fixed pictures of every evaluation."""
    index = torch.arange(len(prompts)).repeat_interleave(per_prompt)
    ids = list(range(len(index)))
    return Request(prompts, index, ids, ids, EVALUATION_SEED)


@dataclass(frozen=True)
class Call:
    """The pictures of one model call: what `rollout` and `sample` need to make them."""

    policy: Policy
    request: Request
    cond: Conditioning
    rows: slice
    advance: Callable[[int], None]

    @property
    def prompt_index(self) -> Tensor:
        """[n] on the device."""
        return self.request.prompt_index[self.rows].to(self.policy.adapter.device)

    def predict(self, x: Tensor, i: Tensor) -> Tensor:
        """Prediction [n, ...] at grid steps i [n]."""
        return self.policy(x, i, self.cond, self.prompt_index)

    def noise(self, step: int) -> Tensor:
        """Noise [n, ...] of a step, on the device; -1 is the initial noise."""
        adapter = self.policy.adapter
        return self.request.noise(step, adapter.latent_shape, self.rows).to(adapter.device)

    def on_step(self, step: int) -> None:
        """Report progress in pictures x steps."""
        self.advance(self.rows.stop - self.rows.start)


def calls(
    policy: Policy,
    request: Request,
    cond: Conditioning,
    size: int,
    advance: Callable[[int], None],
    rows: slice | None = None,
) -> list[Call]:
    """Split a request, or some rows of it, into model calls of at most `size` pictures."""
    rows = rows or slice(0, len(request.sample_ids))
    starts = range(rows.start, rows.stop, size)
    return [Call(policy, request, cond, slice(start, min(start + size, rows.stop)), advance) for start in starts]


def collect(
    parts: list[Call], sampler: Sampler, stats: StepStats, trained: Tensor, reduce: str, keep_prediction: bool = True
) -> Trajectory:
    """Sample the pictures of all calls and keep what the update needs of the trained steps."""
    done = [
        rollout(
            call.predict,
            sampler,
            stats,
            call.noise(-1),
            call.noise,
            trained,
            prompt_index=call.prompt_index,
            reduce=reduce,
            on_step=call.on_step,
            keep_prediction=keep_prediction,
        )
        for call in parts
    ]
    if len(done) == 1:
        return done[0]
    rows: list[dict[str, Any]] = [dict(vars(part)) for part in done]
    steps = done[0].steps
    del done
    # field by field, each taken from the parts as it is joined: the trajectory is not held twice
    names = [name for name, value in rows[0].items() if isinstance(value, Tensor) and name != "steps"]
    joined: dict[str, Any] = {name: torch.cat([row.pop(name) for row in rows]) for name in names}
    return Trajectory(**{"prediction_old": None, "steps": steps, **joined})


def check_rollout(trajectory: Trajectory, where: Where) -> None:
    """Raise NonFinite unless log-probs and final latents are finite: a prediction that is not shows in one of them."""
    log_prob, pictures = trajectory.log_prob, torch.arange(len(trajectory.latents))
    steps = trajectory.steps.expand(log_prob.shape)
    check("log-prob", log_prob, where, pictures=pictures[:, None].expand(log_prob.shape), steps=steps)
    check("latents", trajectory.latents.flatten(1).abs().amax(1), where, pictures=pictures)


def sample_latents(parts: list[Call], sampler: Sampler, stats: StepStats) -> Tensor:
    """Final latents [B, ...] of all calls, without keeping a trajectory."""
    return torch.cat(
        [sample(call.predict, sampler, stats, call.noise(-1), call.noise, on_step=call.on_step) for call in parts]
    )


def decode(adapter: Adapter, latents: Tensor, size: int) -> Tensor:
    """Pictures [B, 3, H, W] uint8 of final latents, at most `size` a call."""
    return torch.cat([adapter.decode(part) for part in latents.split(size)])
