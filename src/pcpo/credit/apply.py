"""How a credit schedule acts: in the log-ratio, on it, on the loss, the variance or the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pcpo.credit.schedules import CREDIT, native
from pcpo.errors import ConfigError, unknown_name
from pcpo.types import StepStats

APPLY: dict[str, str] = {
    "matching": "the target replaces w inside the log-ratio (2509.25774, the default)",
    "ratio": "the true log-ratio times target / native",
    "variance": "ddim with variance pcpo, and the target inside the log-ratio",
    "lambda": "the prediction's distance from the reference times target / native",
    "loss": "the loss times the weight: noise_aware, guard, guard_dt",
}


@dataclass(frozen=True)
class StepCredit:
    """What the update needs to know of each trained step; every field [S] float64.

    native            w = k / s of the sampler
    target            the credit aimed at: ratio_weight * ratio_scale * loss_weight * prediction_scale
    ratio_weight      the w inside log_ratio
    ratio_scale       factor on log_ratio
    loss_weight       factor on the step's loss
    prediction_scale  lambda_t in f' = f_ref + lambda_t (f - f_ref)
    """

    native: Tensor
    target: Tensor
    ratio_weight: Tensor
    ratio_scale: Tensor
    loss_weight: Tensor
    prediction_scale: Tensor

    def __getitem__(self, rows: Tensor | slice) -> StepCredit:
        return StepCredit(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def check_credit(schedule: str, apply: str, sampler_family: str) -> None:
    """Raise ConfigError, with the reason, for unknown names and pairs that make no sense.

    sampler_family: "diffusion" or "flow".
    """
    if schedule not in CREDIT:
        raise unknown_name("credit schedule", schedule, CREDIT)
    if apply not in APPLY:
        raise unknown_name("credit apply", apply, APPLY)
    on_loss = CREDIT[schedule].on_loss
    if on_loss and apply != "loss":
        _refuse(f"{schedule} weighs the loss and cannot act by {apply}", "use apply loss")
    if apply == "loss" and not on_loss:
        _refuse(f"{schedule} is a weight of the log-ratio, not of the loss", "use apply matching or ratio")
    if apply in ("variance", "lambda") and sampler_family != "diffusion":
        _refuse(f"apply {apply} is defined for DDIM only", "use apply matching or ratio with a flow model")
    if apply in ("variance", "lambda") and schedule != "uniform":
        _refuse(f"apply {apply} leads to equal weights, schedule {schedule} does not", "use schedule uniform")
    if schedule == "proportional" and sampler_family == "diffusion":
        _refuse(
            "proportional is for flow: DDIM's last step is cut short, so it would all but lose its credit",
            "use schedule uniform, PCPO's target for diffusion",
        )


def step_credit(stats: StepStats, schedule: str, apply: str, weights: Tensor | None = None) -> StepCredit:
    """Credit of the S trained steps in `stats` (2509.25774 and the alternatives of `APPLY`).

    `check_credit` says which pairs are legal. With apply "variance", `stats` are those of the sampler with
    that variance. weights [S]: what a measured schedule has come to; None: what the schedule says.
    """
    if schedule not in CREDIT:
        raise unknown_name("credit schedule", schedule, CREDIT)
    w = native(stats)
    one = torch.ones_like(w)
    if weights is None:
        weights = CREDIT[schedule].function(stats)
    if apply in ("matching", "variance"):
        return StepCredit(w, weights, weights, one, one, one)
    if apply == "ratio":
        return StepCredit(w, weights, w, weights / w, one, one)
    if apply == "lambda":
        return StepCredit(w, weights, w, one, one, weights / w)
    if apply == "loss":
        loss_weight = weights / weights.mean()
        return StepCredit(w, w * loss_weight, w, one, loss_weight, one)
    raise unknown_name("credit apply", apply, APPLY)


def _refuse(what: str, fix: str) -> None:
    raise ConfigError(what, where="credit", fix=fix)
