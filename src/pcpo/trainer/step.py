"""From a micro-batch of (picture, step) pairs to the loss: predict, log-ratio with credit, objective, penalty."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pcpo.credit import StepCredit
from pcpo.models.base import Adapter, Conditioning
from pcpo.objectives.penalties import PENALTIES
from pcpo.objectives.ratio import log_ratio
from pcpo.samplers.base import per_row
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
        """Prediction by the model as it is tuned now."""
        prediction = self.adapter.predict(x, self._timestep(x, i), cond, index, self.guidance_scale)
        if self.prediction_scale is None:
            return prediction
        reference = self.reference(x, i, cond, index)
        return reference + per_row(self.prediction_scale[i.cpu()], x) * (prediction - reference)

    @torch.no_grad()
    def reference(self, x: Tensor, i: Tensor, cond: Conditioning, index: Tensor) -> Tensor:
        """The same prediction by the model before tuning."""
        with self.adapter.reference():
            return self.adapter.predict(x, self._timestep(x, i), cond, index, self.guidance_scale)

    def _timestep(self, x: Tensor, i: Tensor) -> Tensor:
        return self.grid.timesteps[i.cpu()].to(x.device, x.dtype)


class SampledWeights:
    """A copy of the trained parameters as they sampled, for a replay after they have changed."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.copies = [p.detach().clone() for p in parameters]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, the model is the sampling policy."""
        current = [p.data for p in self.parameters]
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            parameter.data = copy
        try:
            yield
        finally:
            for parameter, data in zip(self.parameters, current, strict=True):
                parameter.data = data


@dataclass
class Update:
    """All that the pairs of one rollout share. `credit` and `stats` have one row per trained step [S].

    Where the trajectory has no old predictions they are replayed: by the weights that `sampled`, or without them, in
    an iteration of one update, by taking the prediction itself.
    """

    policy: Policy
    trajectory: Trajectory
    cond: Conditioning
    advantage: Tensor
    credit: StepCredit
    stats: StepStats
    objective: Callable[[StepTerms], LossTerms]
    objective_settings: ObjectiveSettings
    penalty: PenaltySettings
    sampled: SampledWeights | None = None

    def loss(self, pictures: Tensor, positions: Tensor, fill: int = 0) -> LossTerms:
        """Loss of N pairs [N], not reduced, with metrics [N]; pictures, positions: LongTensor [N] on the CPU.

        With `fill` the network is called with that many rows at least, some of them repeated and not used: kernels
        round as the shape of their input says, so only calls of the rollout's shape repeat its predictions.

        The log-ratio comes from prediction differences, not from two log-probs: the same number without cancellation,
        and exactly 0 at the sampling policy.
        """
        run, settings, count = self.trajectory, self.objective_settings, len(pictures)
        device = run.x_t.device
        rows = torch.arange(max(count, fill)) % count
        called = run.x_t[pictures[rows].to(device), positions[rows].to(device)]
        step, index = run.steps[positions[rows]], run.prompt_index[pictures[rows].to(device)]
        b, s = pictures.to(device), positions.to(device)
        replayed = self._replayed(called, step, index)
        prediction = self.policy(called, step, self.cond, index)[:count]
        if run.prediction_old is not None:
            old = run.prediction_old[b, s]
        else:
            old = prediction.detach() if replayed is None else replayed[:count]
        ratio = log_ratio(
            prediction - old,
            run.noise[b, s],
            self.credit.ratio_weight[positions].to(old),
            reduce=settings.reduce,
            quadratic=settings.quadratic,
        )
        out = self.objective(
            StepTerms(
                log_ratio=ratio * self.credit.ratio_scale[positions].to(old),
                advantage=self.advantage[b],
                weight=self.credit.loss_weight[positions].to(old),
            )
        )
        if self.penalty.form == "none":
            return out
        difference = prediction - self.policy.reference(called, step, self.cond, index)[:count]
        kl = PENALTIES[self.penalty.form](difference, self.stats[positions], settings.reduce)
        return LossTerms(out.per_step + self.penalty.beta * kl, {**out.metrics, "kl_ref": kl.detach()})

    @torch.no_grad()
    def _replayed(self, x: Tensor, step: Tensor, index: Tensor) -> Tensor | None:
        """The sampling policy's predictions anew; None where they are stored, or are those of the policy as it is."""
        if self.trajectory.prediction_old is not None or self.sampled is None:
            return None
        with self.sampled.restored():
            return self.policy(x, step, self.cond, index)
