"""The first half of an iteration: prompts -> groups -> rollout -> pictures -> rewards -> advantages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pcpo.data.prompts import Prompt
from pcpo.models.base import Adapter, Conditioning
from pcpo.samplers.base import Sampler
from pcpo.samplers.noise import noise_batch
from pcpo.samplers.rollout import rollout, sample
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


def chunks(total: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` rows."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


@torch.no_grad()
def collect(
    policy: Policy,
    sampler: Sampler,
    stats: StepStats,
    request: Request,
    cond: Conditioning,
    trained: Tensor,
    *,
    size: int,
    reduce: str,
    advance: Callable[[int], None] = lambda n: None,
) -> Trajectory:
    """Sample the requested pictures, at most `size` a model call, and keep what the update needs."""
    adapter, shape = policy.adapter, policy.adapter.latent_shape
    parts = []
    for rows in chunks(len(request.sample_ids), size):
        index = request.prompt_index[rows].to(adapter.device)
        parts.append(
            rollout(
                lambda x, i, index=index: policy(x, i, cond, index),
                sampler,
                stats,
                request.noise(-1, shape, rows).to(adapter.device),
                lambda step, rows=rows: request.noise(step, shape, rows).to(adapter.device),
                trained,
                prompt_index=index,
                reduce=reduce,
                on_step=lambda _, n=rows.stop - rows.start: advance(n),
            )
        )
    if len(parts) == 1:
        return parts[0]
    names = ("x_t", "noise", "prediction_old", "log_prob", "latents", "prompt_index")
    return Trajectory(steps=parts[0].steps, **{n: torch.cat([getattr(p, n) for p in parts]) for n in names})


@torch.no_grad()
def sample_pictures(
    policy: Policy,
    sampler: Sampler,
    stats: StepStats,
    request: Request,
    cond: Conditioning,
    *,
    size: int,
    advance: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """Pictures [B, 3, H, W] uint8 of a request, without keeping a trajectory."""
    adapter, shape = policy.adapter, policy.adapter.latent_shape
    pictures = []
    for rows in chunks(len(request.sample_ids), size):
        index = request.prompt_index[rows].to(adapter.device)
        latents = sample(
            lambda x, i, index=index: policy(x, i, cond, index),
            sampler,
            stats,
            request.noise(-1, shape, rows).to(adapter.device),
            lambda step, rows=rows: request.noise(step, shape, rows).to(adapter.device),
            on_step=lambda _, n=rows.stop - rows.start: advance(n),
        )
        pictures.append(adapter.decode(latents))
    return torch.cat(pictures)


def decode(adapter: Adapter, latents: Tensor, size: int) -> Tensor:
    """Pictures [B, 3, H, W] uint8 of final latents, at most `size` a call."""
    return torch.cat([adapter.decode(part) for part in latents.split(size)])
