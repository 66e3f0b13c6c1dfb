"""Turn a configuration into the parts of the algorithm: sampler, grid, credit, objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pcpo.credit import StepCredit, step_credit
from pcpo.credit.adaptive import AdaptiveCredit, start_schedule
from pcpo.errors import ConfigError
from pcpo.models.base import Adapter
from pcpo.samplers import SAMPLERS, make_sampler
from pcpo.samplers.base import Sampler
from pcpo.trainer.config import Config, sampler_parameters
from pcpo.trainer.schedule import eligible_steps, inclusion, trained_steps
from pcpo.types import Grid, StepStats


@dataclass
class Algorithm:
    """Sampler and credit on one grid. `eligible` [E] are the steps that may be trained, `credit` has a row for each.

    With a measured schedule (`adaptive` is its state) the credit is what the measurements so far make of it.
    """

    config: Config
    sampler: Sampler
    grid: Grid
    stats: StepStats
    eligible: Tensor
    start: StepCredit
    adaptive: AdaptiveCredit | None = None

    @property
    def credit(self) -> StepCredit:
        """Rows [E] in force now."""
        if self.adaptive is None:
            return self.start
        settings = self.config.credit
        return step_credit(self.stats[self.eligible], settings.schedule, settings.apply, self.adaptive.weights())

    def trained(self, iteration: int) -> Tensor:
        """Grid indices [S] trained in this iteration."""
        return trained_steps(self.eligible, self.config.train, self.config.run.seed, iteration, self.start.target)

    def credit_of(self, steps: Tensor) -> StepCredit:
        """The credit rows of trained steps [S].

        Steps drawn with probability p count 1 / p in the loss, over what all of them together count: with select=credit
        its expectation, and so that of the gradient, is what training every eligible step would give.
        """
        rows = self.rows(steps)
        credit = self.credit[rows]
        if self.config.train.select != "credit":
            return credit
        share = inclusion(self.start.target, len(steps))[rows] * len(self.eligible) / len(steps)
        return replace(credit, loss_weight=credit.loss_weight / share)

    def rows(self, steps: Tensor) -> Tensor:
        """Where trained steps [S] are among the eligible ones."""
        return torch.searchsorted(self.eligible, steps)

    def credit_event(self) -> dict[str, Any]:
        """Fields [E] of the credit event: coefficients and the weights in force."""
        credit, stats = self.credit, self.stats[self.eligible]
        return {
            "steps": self.eligible.tolist(),
            "num_steps": self.grid.num_steps,
            "native": credit.native.tolist(),
            "target": credit.target.tolist(),
            **{name: getattr(stats, name).tolist() for name in ("t", "dt", "std")},
        }

    def sampling_stats(self, steps: Tensor) -> StepStats:
        """Per-step coefficients [T] used to sample: deterministic outside `steps` where so configured."""
        if self.config.sampler.stochastic == "all":
            return self.stats
        mask = torch.zeros(self.grid.num_steps, dtype=torch.bool)
        mask[steps] = True
        return self.sampler.stats_with(self.grid, mask)

    def prediction_scale(self) -> Tensor | None:
        """lambda_t [T] of credit.apply=lambda, 1 on steps that are not trained; None for the other applications."""
        if self.config.credit.apply != "lambda":
            return None
        scale = torch.ones(self.grid.num_steps, dtype=torch.float64)
        scale[self.eligible] = self.credit.prediction_scale
        return scale


def check_family(config: Config, kind: str) -> None:
    """Raise ConfigError when the sampler is not for models of this kind ("diffusion" or "flow")."""
    name = config.sampler.name
    if SAMPLERS[name].family not in (kind, "both"):
        fitting = [n for n, spec in SAMPLERS.items() if spec.family == kind]
        raise ConfigError(
            f"{name} samples {SAMPLERS[name].family} models, and {config.model.path} is a {kind} model",
            where="sampler.name",
            fix=f"use {' or '.join(fitting)}",
        )


def build_algorithm(config: Config, adapter: Adapter) -> Algorithm:
    """Assemble the slots for a model. Raises ConfigError where sampler and model do not fit."""
    check_family(config, adapter.kind)
    sampler = make_sampler(config.sampler.name, **sampler_parameters(config))
    grid = adapter.grid(config.sampler.steps, kind=config.sampler.grid, shift=config.sampler.shift)
    stats = sampler.stats(grid)
    eligible = eligible_steps(stats, config.train)
    settings = config.credit
    start = step_credit(stats[eligible], start_schedule(settings.schedule, adapter.kind), settings.apply)
    adaptive = None
    if settings.schedule == "adaptive":
        adaptive = AdaptiveCredit(start.target, settings.smoothing, settings.floor)
    return Algorithm(config, sampler, grid, stats, eligible, start, adaptive)
