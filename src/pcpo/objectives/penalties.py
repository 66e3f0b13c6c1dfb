"""Penalties that keep the policy near its reference, from the difference of two predictions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pcpo.samplers.base import per_row, reduce_latent
from pcpo.types import StepStats

Penalty = Callable[[Tensor, StepStats, str], Tensor]


def kl_exact(diff_ref: Tensor, stats_rows: StepStats, reduce: str = "mean") -> Tensor:
    """KL of the step from the reference's, |dmu|^2 / (2 s^2) with dmu = k d; [N].

    diff_ref d [N, ...] = prediction - reference prediction; stats_rows: the row of each pair [N],
    with std > 0.
    """
    w = stats_rows.pred_coef / stats_rows.std
    return 0.5 * reduce_latent((per_row(w, diff_ref) * diff_ref) ** 2, reduce)


def kl_rate(diff_ref: Tensor, stats_rows: StepStats, reduce: str = "mean") -> Tensor:
    """|dmu|^2 / (2 s^2 / dt) = dt * kl_exact; [N]. Flow-GRPO codes this one; its beta .01 / .04 mean it."""
    kl = kl_exact(diff_ref, stats_rows, reduce)
    return kl * stats_rows.dt.to(kl.dtype).to(kl.device)


PENALTIES: dict[str, Penalty] = {"exact": kl_exact, "rate": kl_rate}
