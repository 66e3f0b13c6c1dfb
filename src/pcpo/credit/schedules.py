"""Credit schedules: what each step should weigh, from the sampler's coefficients alone.

Every schedule takes the StepStats of the S trained steps and returns weights [S], float64, finite and >= 0.
It raises ConfigError if a trained step draws no noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pcpo.errors import ConfigError
from pcpo.types import CreditSchedule, StepStats


def native(stats: StepStats) -> Tensor:
    """w = k / s: grad log rho = -w z.grad f, so this is the credit that the sampler gives by itself."""
    if (stats.std <= 0).any():
        step = int(stats.index[stats.std <= 0][0])
        raise ConfigError(
            f"step {step} draws no noise, so it has no credit",
            where="credit",
            fix="leave it out of the trained steps, or make it stochastic",
        )
    return stats.pred_coef / stats.std


def uniform(stats: StepStats) -> Tensor:
    """PCPO for diffusion (2509.25774): the mean of the native weights at every step, so their sum is kept."""
    w = native(stats)
    return w.mean().expand_as(w).clone()


def proportional(stats: StepStats) -> Tensor:
    """PCPO for flow (2509.25774): zeta dt with zeta = sum w / sum dt over the trained steps, keeping the sum.

    The native weight of a borrowed first step (Flow-SDE at t = 1) is no true one: a copy of the second counts
    for it.
    """
    w = native(stats)
    if len(w) > 1 and stats.borrowed[0]:
        w[0] = w[1]
    return w.sum() / stats.dt.sum() * stats.dt


def noise_aware(stats: StepStats) -> Tensor:
    """TempFlow-GRPO (2508.04324): the loss times s, normalised to mean 1; the credit becomes k."""
    native(stats)
    return stats.std / stats.std.mean()


def guard(stats: StepStats) -> Tensor:
    """GRPO-Guard (2510.22319): the loss times s / k, normalised to mean 1; the credit becomes uniform."""
    inverse = 1 / native(stats)
    return inverse / inverse.mean()


def guard_dt(stats: StepStats) -> Tensor:
    """GRPO-Guard's other form: the loss times s / dt, normalised to mean 1; the credit becomes k / dt."""
    native(stats)
    rate = stats.std / stats.dt
    return rate / rate.mean()


@dataclass(frozen=True)
class CreditSpec:
    """A registered schedule.

    on_loss    it weighs the loss, so it acts by "loss" only
    measured   the function is only where it starts; `pcpo.credit.adaptive` goes on from there
    """

    function: CreditSchedule
    summary: str
    source: str
    on_loss: bool = False
    measured: bool = False


CREDIT: dict[str, CreditSpec] = {
    "native": CreditSpec(native, "What the sampler gives by itself, k / s", "2305.13301"),
    "uniform": CreditSpec(uniform, "PCPO for diffusion: the same weight at every step", "2509.25774"),
    "proportional": CreditSpec(proportional, "PCPO for flow: in proportion to the step length", "2509.25774"),
    "noise_aware": CreditSpec(noise_aware, "TempFlow-GRPO: the loss times s", "2508.04324", on_loss=True),
    "guard": CreditSpec(guard, "GRPO-Guard: the loss times s / k", "2510.22319", on_loss=True),
    "guard_dt": CreditSpec(guard_dt, "GRPO-Guard: the loss times s / dt", "2510.22319", on_loss=True),
    "adaptive": CreditSpec(uniform, "Measured signal over noise of each step's gradient", "derived", measured=True),
}
