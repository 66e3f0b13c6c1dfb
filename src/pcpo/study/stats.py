"""Statistics of a study: time to a target, means over seeds with bootstrap intervals, comparisons paired by seed.

A seed is the unit: runs of two arms with the same seed saw the same prompts and noises. Fewer than three seeds have no
interval, and one seed has no mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
MIN_SEEDS = 3


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its interval; mean is None below 2 seeds, low and high below 3."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float], transform: Callable[[float], float] | None = None, seed: int = 0) -> Estimate:
    """Mean over seeds with an expanded percentile bootstrap interval at the 95 % level.

    The percentile bootstrap is too narrow for few values: its spread is that of the biased variance, and of a normal
    instead of Student's t. So its tail probability is taken at sqrt(n / (n - 1)) t_{.975, n-1} standard deviations
    (Hesterberg, 1411.5279, section 3.3). With 3 values the interval is their range: no resampling can say more.
    `transform` (monotone) is applied to mean and limits: exp gives a geometric mean of values that are logarithms.
    """
    data = np.asarray(values, dtype=np.float64)
    n, show = len(data), transform or float
    if n < 2:
        return Estimate(None, None, None, n)
    mean = show(float(data.mean()))
    if n < MIN_SEEDS:
        return Estimate(mean, None, None, n)
    draws = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile(n - 1))
    low, high = np.quantile(data[draws].mean(1), [tail, 1 - tail])
    return Estimate(mean, show(float(low)), show(float(high)), n)


def student_quantile(df: int, level: float = LEVEL) -> float:
    """The value that |t| stays below with probability `level`, for df degrees of freedom (closed form, bisected)."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _central(theta: float, df: int) -> float:
    """P(|t| < sqrt(df) tan(theta)): the finite series of integer df (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    cosine, odd = math.cos(theta), df % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(2 + odd, df + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return (2 / math.pi) * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def crossing(x: Sequence[float], y: Sequence[float], target: float) -> float | None:
    """The first x at which the piecewise linear curve through (x, y) reaches the target; None when it never does."""
    if y and y[0] >= target:
        return float(x[0])
    for (x0, y0), (x1, y1) in pairwise(zip(x, y, strict=True)):
        if y1 >= target:
            return x0 + (x1 - x0) * (target - y0) / (y1 - y0)
    return None


def restricted(time: float | None, horizon: float) -> float:
    """min(time, horizon); never is the horizon. Its mean is the restricted mean time to the target."""
    return horizon if time is None else min(time, horizon)


def restricted_log_ratio(arm: float | None, baseline: float | None, horizon: float) -> float:
    """log(arm / baseline) of two times, both restricted to the horizon; times are above 0."""
    return math.log(restricted(arm, horizon) / restricted(baseline, horizon))


@dataclass(frozen=True)
class TimeComparison:
    """Times of an arm against those of a baseline, paired by seed.

    ratio       geometric mean of arm / baseline over the seeds that reached the target in both
    bound       the same over the seeds that reached it in one or both, times restricted to the horizon: at least the
                true ratio where only baselines failed to reach it, at most the true ratio where only the arm did
    difference  mean of arm - baseline with both restricted to the horizon, over all common seeds
    both, only_arm, only_baseline, neither   how many common seeds reached it
    """

    ratio: Estimate
    bound: Estimate
    difference: Estimate
    both: int
    only_arm: int
    only_baseline: int
    neither: int


def compare_times(
    arm: Mapping[int, float | None], baseline: Mapping[int, float | None], horizon: float
) -> TimeComparison:
    """Compare times to a target (None: not reached up to the horizon) by seed; times are above 0."""
    pairs = [(arm[seed], baseline[seed]) for seed in sorted(arm.keys() & baseline.keys())]
    logs = [math.log(a / b) for a, b in pairs if a is not None and b is not None]
    bounds = [restricted_log_ratio(a, b, horizon) for a, b in pairs if a is not None or b is not None]
    return TimeComparison(
        ratio=estimate(logs, math.exp),
        bound=estimate(bounds, math.exp),
        difference=estimate([restricted(a, horizon) - restricted(b, horizon) for a, b in pairs]),
        both=len(logs),
        only_arm=sum(a is not None and b is None for a, b in pairs),
        only_baseline=sum(a is None and b is not None for a, b in pairs),
        neither=sum(a is None and b is None for a, b in pairs),
    )


def paired_difference(arm: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Mean of arm - baseline over the common seeds."""
    return estimate([arm[seed] - baseline[seed] for seed in sorted(arm.keys() & baseline.keys())])
