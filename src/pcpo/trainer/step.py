"""From a micro-batch of (picture, step) pairs to the loss: predict, log-ratio with credit, objective, penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pcpo.credit.apply import StepCredit
from pcpo.models.base import Adapter, Conditioning
from pcpo.objectives.penalties import PENALTIES
from pcpo.objectives.ratio import log_ratio
from pcpo.trainer.config import ObjectiveSettings, PenaltySettings
from pcpo.types import Grid, LossTerms, StepStats, StepTerms, Trajectory


@dataclass
class Policy:
    """The tuned network as the sampler sees it: prediction [N, ...] at grid steps i [N] for rows of `cond`.

    With credit.apply=lambda the prediction is f_ref + lambda_t (f - f_ref); otherwise prediction_scale is None.
    """

    adapter: Adapter
    grid: Grid
    guidance_scale: float
    prediction_scale: Tensor | None = None

    def __call__(self, x: Tensor, i: Tensor, cond: Conditioning, index: Tensor) -> Tensor:
        timestep = self.grid.timesteps.to(x.device, x.dtype)[i]
        prediction = self.adapter.predict(x, timestep, cond, index, self.guidance_scale)
        if self.prediction_scale is None:
            return prediction
        scale = per_row(self.prediction_scale[i], x)
        reference = self.reference(x, i, cond, index)
        return reference + scale * (prediction - reference)

    @torch.no_grad()
    def reference(self, x: Tensor, i: Tensor, cond: Conditioning, index: Tensor) -> Tensor:
        """The same prediction by the model before tuning."""
        timestep = self.grid.timesteps.to(x.device, x.dtype)[i]
        with self.adapter.reference():
            return self.adapter.predict(x, timestep, cond, index, self.guidance_scale)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """values [N] shaped to multiply `like` [N, ...], on its device and in its dtype."""
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))


@dataclass
class Update:
    """All that the pairs of one rollout share. `credit` and `stats` have one row per trained step [S]."""

    policy: Policy
    trajectory: Trajectory
    cond: Conditioning
    advantage: Tensor
    credit: StepCredit
    stats: StepStats
    objective: Callable[[StepTerms], LossTerms]
    objective_settings: ObjectiveSettings
    penalty: PenaltySettings

    def terms(self, pictures: Tensor, positions: Tensor) -> tuple[StepTerms, Tensor]:
        """Terms of N pairs and their predictions [N, ...]; pictures, positions: LongTensor [N]."""
        run = self.trajectory
        device = run.x_t.device
        pictures, rows = pictures.to(device), positions.to(device)
        x_t, noise, old = (t[pictures, rows] for t in (run.x_t, run.noise, run.prediction_old))
        index = run.prompt_index[pictures]
        prediction = self.policy(x_t, run.steps[rows], self.cond, index)
        settings, credit = self.objective_settings, self.credit
        ratio = log_ratio(
            prediction - old,
            noise,
            credit.ratio_weight[positions].to(device, x_t.dtype),
            reduce=settings.reduce,
            quadratic=settings.quadratic,
        )
        terms = StepTerms(
            log_ratio=ratio * credit.ratio_scale[positions].to(ratio),
            advantage=self.advantage[pictures].to(ratio),
            weight=credit.loss_weight[positions].to(ratio),
        )
        return terms, prediction

    def loss(self, pictures: Tensor, positions: Tensor) -> LossTerms:
        """Loss of every pair [N], not reduced, with metrics [N]; the KL penalty is added where it is configured."""
        terms, prediction = self.terms(pictures, positions)
        out = self.objective(terms)
        if self.penalty.form == "none":
            return out
        run, rows = self.trajectory, positions.to(prediction.device)
        pictures = pictures.to(prediction.device)
        x_t, index = run.x_t[pictures, rows], run.prompt_index[pictures]
        difference = prediction - self.policy.reference(x_t, run.steps[rows], self.cond, index)
        kl = PENALTIES[self.penalty.form](difference, self.stats[positions], self.objective_settings.reduce)
        out.metrics["kl_ref"] = kl.detach()
        return LossTerms(out.per_step + self.penalty.beta * kl, out.metrics)
