"""Credit from measurement: weigh each step by the signal of its gradient over the noise of it.

With h_t the batch mean of step t's gradient at unit weight, the update is g = sum_t c_t h_t. The steps' noises are
independent, so with mu_t = E h_t and v_t = tr Cov(h_t)

    signal  |E g|^2 = sum_ts c_t c_s mu_t . mu_s           noise  E |g - E g|^2 = sum_t c_t^2 v_t

and the ratio of the two is largest where c_t ~ <mu_t, E g> / v_t: a fixed point of power iteration, reached in one step
when all mu_t point the same way (derived here; docs/explanation/equations.md section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pcpo.errors import CheckpointError

YOUNG = 1.0  # measurements after which a step's weight is half measured, half PCPO's target
FIELDS = ("signal", "square", "noise", "count")


def start_schedule(schedule: str, kind: str) -> str:
    """Where `adaptive` starts: PCPO's target for models of this kind. Any other schedule is its own start."""
    if schedule != "adaptive":
        return schedule
    return "proportional" if kind == "flow" else "uniform"


def signal_and_noise(a: Tensor, b: Tensor, credit: Tensor, counts: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Unbiased estimates of <mu_t, E g> and of v_t, each [S] float64, from two independent halves of a batch.

    a, b [S, n]: the mean gradient of each step at unit weight over the pictures of a half; credit c [S]; counts: the
    pictures n_a and n_b of the halves. No group of pictures may be in both: advantages tie its pictures together.

        q_t = 1/2 (<h_t^a, g^b> + <h_t^b, g^a>)             the halves' noises are independent, so they cancel
        v_t = n_a n_b / (n_a + n_b)^2 |h_t^a - h_t^b|^2     of the mean over both: with per-picture variance s,
                                                            E|h^a - h^b|^2 = s (1/n_a + 1/n_b), and v = s / (n_a + n_b)
    """
    c = credit.to(a)
    signal = 0.5 * (a @ (c @ b) + b @ (c @ a))
    n_a, n_b = counts
    noise = (a - b).square().sum(1) * (n_a * n_b / (n_a + n_b) ** 2)
    return signal.double().cpu(), noise.double().cpu()


def shrink(signal: Tensor, error: Tensor) -> Tensor:
    """Empirical-Bayes signal [S], >= 0, from estimates [S] and the variance of each (DerSimonian and Laird, 1986).

    The steps' signals are taken as draws around a common value with a variance of their own, both estimated from the
    data: as long as the differences among the steps are no larger than the errors explain, all get the common value.
    "No larger" is two standard deviations of chi-squared, not its mean: when the signal is drowned, half of all data
    lie above the mean by chance. The common value is not let below its own standard error, because the credit-weighted
    sum of the signals is a square.
    """
    weight = 1 / error
    common = (weight * signal).sum() / weight.sum()
    freedom = len(signal) - 1
    excess = (weight * (signal - common) ** 2).sum() - freedom - 2 * (2 * freedom) ** 0.5
    scale = weight.sum() - weight.square().sum() / weight.sum()
    between = (excess / scale).clamp(min=0) if len(signal) > 1 else torch.zeros_like(common)
    weight = 1 / (error + between)
    common = torch.maximum((weight * signal).sum() / weight.sum(), weight.sum().rsqrt())
    return (common + between * weight * (signal - common)).clamp(min=0)


def bounded(weights: Tensor, floor: float, total: Tensor) -> Tensor:
    """Weights [S] >= 0 scaled to a sum, none below `floor` times their mean; floor in [0, 1]."""
    share = weights / weights.sum()
    least = floor / len(weights)
    low = share < least
    # Raising some lowers the others, which can bring further ones below: at most S rounds.
    while True:
        rest = share[~low].sum()
        scaled = (share * (1 - least * int(low.sum())) / rest).masked_fill(low, least)
        below = low | (scaled < least)
        if torch.equal(below, low):
            return scaled * total
        low = below


class AdaptiveCredit:
    """Running estimates of every step's signal and noise, and the weights that follow; call `observe` in order.

    start      [E]  the schedule while little is known; its sum is kept
    smoothing       decay of the running means, bias-corrected as Adam's are (1412.6980)
    floor           least weight of a step over the mean weight; above 0, or a step could not be measured again
    """

    def __init__(self, start: Tensor, smoothing: float = 0.95, floor: float = 0.1) -> None:
        self.start, self.smoothing, self.floor = start, smoothing, floor
        self.signal, self.square, self.noise, self.count = (torch.zeros_like(start) for _ in FIELDS)

    def observe(self, rows: Tensor, signal: Tensor, noise: Tensor) -> None:
        """Take in one measurement, [S] float64 each, of the steps at `rows` [S] of `start`."""
        for mean, value in ((self.signal, signal), (self.square, signal**2), (self.noise, noise)):
            mean[rows] = self.smoothing * mean[rows] + (1 - self.smoothing) * value
        self.count[rows] += 1

    def weights(self) -> Tensor:
        """Credit [E] float64: signal / noise, from `start` by n / (n + 1) after n measurements of a step.

        A step that has not been measured, or has shown no gradient at all, keeps its share of the start.
        """
        seen = (self.count > 0) & (self.noise > 0)
        if not seen.any():
            return self.start.clone()
        n = self.count[seen]
        corrected = 1 - self.smoothing**n
        noise = self.noise[seen] / corrected
        ideal = self._signal(seen, corrected, noise) / noise
        start, trust = self.start[seen], n / (n + YOUNG)
        weights = self.start.clone()
        weights[seen] = (1 - trust) * start + trust * ideal * (start.sum() / ideal.sum())
        weights[seen] *= start.sum() / weights[seen].sum()
        return bounded(weights, self.floor, self.start.sum())

    def _signal(self, seen: Tensor, corrected: Tensor, noise: Tensor) -> Tensor:
        """Shrunk signal of the steps seen. Its errors are pooled: an estimate's variance goes as the step's noise.

        A variance from few measurements is itself uncertain: the errors get that of Student's t, (n - 1) / (n - 3).
        """
        n, beta = self.count[seen], self.smoothing
        size = (1 + beta) / (1 - beta) * (1 - beta**n) / (1 + beta**n)  # effective number of measurements
        mean = self.signal[seen] / corrected
        if (size <= 3).any() or (mean <= 0).all():
            return torch.ones_like(noise)  # nothing is known of the signal: all steps alike, weighed by 1 / noise
        variance = (self.square[seen] / corrected - mean**2).clamp(min=0) / (1 - 1 / size)
        pooled = (variance / noise).mean()
        error = pooled * noise / size * (size - 1) / (size - 3)
        return shrink(mean, error) if pooled > 0 else mean.clamp(min=0)

    def state_dict(self) -> dict[str, list[float]]:
        """The running sums, ready for JSON, which keeps every bit of a float."""
        return {name: getattr(self, name).tolist() for name in FIELDS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave. Raises CheckpointError if it is not of that form or length."""
        if set(state) != set(FIELDS) or any(len(state[name]) != len(self.start) for name in FIELDS):
            raise CheckpointError(f"not {', '.join(FIELDS)} of {len(self.start)} steps", where="credit adaptive")
        for name in FIELDS:
            setattr(self, name, torch.tensor(state[name], dtype=self.start.dtype))
