"""Records that cross module borders.

Axes, used in every shape comment and docstring:

    P prompts in an iteration      G pictures per prompt (the group)      B = P * G pictures, prompt-major
    T steps of the sampler         S trained steps (a subset of the T)    N (picture, step) pairs in a micro-batch
    ... latent axes of one picture: [C, H, W], or [L, C] for packed latents; D = their product
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The time grid of one sampling run, float64 on the CPU.

    kind        "diffusion" (eps-prediction, variance preserving) or "flow" (x_t = (1-t) x0 + t eps)
    timesteps   [T]    what the backbone is fed
    times       [T+1]  flow: t from 1 to 0. diffusion: timestep / num_train_timesteps, the last one clamped at 0
    alpha_bar   [T+1]  diffusion only: cumulative alpha at every grid point, the last one for the final picture
    """

    kind: str
    timesteps: Tensor
    times: Tensor
    alpha_bar: Tensor | None = None

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.timesteps)


@dataclass(frozen=True)
class StepStats:
    """What a credit schedule may look at; every field [S], float64 (equations of one Gaussian step).

    x_next = x_coef * x_t - pred_coef * prediction + std * noise

    borrowed (bool) marks a step where the sampler's rule has no value of its own and takes one from the next
    grid point: Flow-SDE at t = 1, where its noise is infinite.
    """

    index: Tensor
    t: Tensor
    dt: Tensor
    std: Tensor
    pred_coef: Tensor
    x_coef: Tensor
    borrowed: Tensor

    def __getitem__(self, rows: Tensor | slice) -> StepStats:
        return StepStats(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class StepOutput:
    """One sampler step. x_next, mean [N, ...]; log_prob [N] (nan where std is 0); std, pred_coef [N]."""

    x_next: Tensor
    log_prob: Tensor
    mean: Tensor
    std: Tensor
    pred_coef: Tensor


@dataclass
class Trajectory:
    """What a rollout leaves for the update, float32.

    x_t, noise                  [B, S, ...]   state before the step, the noise drawn in it
    prediction_old              [B, S, ...]   the sampling policy's output; None where it is replayed in the update
    log_prob                    [B, S]        reduced as configured
    steps                       [S]           indices into the grid
    latents                     [B, ...]      the final state, to be decoded
    prompt_index                [B]           which of the iteration's prompts each picture belongs to
    """

    x_t: Tensor
    noise: Tensor
    prediction_old: Tensor | None
    log_prob: Tensor
    steps: Tensor
    latents: Tensor
    prompt_index: Tensor


@dataclass
class StepTerms:
    """Input of an objective for N (picture, step) pairs, every field [N].

    log_ratio   log importance ratio, or -m of the matching form: 0 at the sampling policy
    advantage   of the pair's picture
    weight      factor on the pair's loss (1 unless the credit schedule acts on the loss)
    """

    log_ratio: Tensor
    advantage: Tensor
    weight: Tensor


@dataclass
class LossTerms:
    """Output of an objective: per_step [N], not reduced, and detached metrics, each [N]."""

    per_step: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class RewardResult:
    """Values [B] float32; valid [B] bool (False: the reward abstains on that picture); info: parts by name, [B]."""

    values: Tensor
    valid: Tensor
    info: dict[str, Tensor] = field(default_factory=dict)


class Reward(Protocol):
    """Anything callable on pictures and their prompts.

    images [B, 3, H, W] uint8 on the CPU; prompts of length B; metadata: one mapping per picture.
    Returns a RewardResult, or [B] numbers (tensor, array or list); NaN and None are refused, not abstentions.
    """

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> RewardResult | Tensor | Sequence[float]:
        """Score the pictures."""
        ...


CreditSchedule = Callable[[StepStats], Tensor]
Surrogate = Callable[[Tensor, Tensor, float], Tensor]

__all__ = [
    "CreditSchedule",
    "Grid",
    "LossTerms",
    "Reward",
    "RewardResult",
    "StepOutput",
    "StepStats",
    "StepTerms",
    "Surrogate",
    "Trajectory",
]
