"""What the calls of an iteration allocate, found by making them on the meta device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from pcpo.models.base import Adapter
from pcpo.models.lora import trainable
from pcpo.objectives.compose import make_objective
from pcpo.plan.meter import AllocationMeter, DeviceRules
from pcpo.plan.skeleton import META, conditioning, recompute_under
from pcpo.trainer.config import Config
from pcpo.trainer.model import folding
from pcpo.trainer.parts import Algorithm, build_algorithm
from pcpo.trainer.step import Policy, Update
from pcpo.types import Trajectory


class Simulation:
    """The model calls of one configuration on a skeleton of its model.

    Every method returns the meter of what its call makes, beyond what is there before: weights, gradients, trajectory
    and prompt embeddings.
    """

    def __init__(self, config: Config, adapter: Adapter) -> None:
        self.config, self.adapter = config, adapter
        self.algorithm: Algorithm = build_algorithm(config, adapter)
        self.trained = self.algorithm.trained(0)
        scale = self.algorithm.prediction_scale()
        self.policy = Policy(adapter, self.algorithm.grid, config.sampler.guidance_scale, scale)
        self.cond = conditioning(adapter, config.batch.prompts)
        if config.model.tune == "full" and (config.kl.form != "none" or config.credit.apply == "lambda"):
            adapter.keep_reference()

    def forward(self, pictures: int) -> AllocationMeter:
        """One sampling step of `pictures` pictures."""
        x, index = self._latents(pictures), self._index(pictures)
        with torch.no_grad(), self._metered() as meter:
            prediction = self.policy(x, torch.zeros(pictures, dtype=torch.long), self.cond, index)
            self.algorithm.sampler.step(prediction, x, 0, self.algorithm.stats, noise=self._latents(pictures))
        return meter

    def update(self, pairs: int) -> AllocationMeter:
        """Loss and gradient of `pairs` (picture, step) pairs; the gradient's own place is there already."""
        config, run = self.config, self._trajectory(pairs)
        update = Update(
            policy=self.policy,
            trajectory=run,
            cond=self.cond,
            advantage=torch.empty(pairs, device=META),
            credit=self.algorithm.credit_of(self.trained),
            stats=self.algorithm.stats[self.trained],
            objective=make_objective(config.objective.name, config.objective.clip_range),
            objective_settings=config.objective,
            penalty=config.kl,
        )
        for _, parameter in trainable(self.adapter.unwrapped):
            parameter.grad = torch.zeros_like(parameter)
        rows = torch.arange(pairs)
        with self._metered() as meter:
            out = update.loss(rows, torch.zeros_like(rows))
            torch.autograd.backward(out.per_step.sum())
        return meter

    def decode(self, pictures: int) -> AllocationMeter:
        """The VAE on `pictures` final latents."""
        latents = self._latents(pictures)
        with torch.no_grad(), self._metered(autocast=False) as meter:
            images = self.adapter.to_pictures(latents).float()
            (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return meter

    @contextlib.contextmanager
    def _metered(self, autocast: bool = True) -> Iterator[AllocationMeter]:
        rules = DeviceRules(self.adapter.autocast if autocast else None)
        recompute_under(self.adapter, lambda: rules)
        with rules, folding(self.config, self.adapter), AllocationMeter() as meter:
            yield meter

    def _latents(self, count: int) -> Tensor:
        return torch.empty(count, *self.adapter.latent_shape, device=META)

    def _index(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.long, device=META)

    def _trajectory(self, count: int) -> Trajectory:
        kept = torch.empty(count, len(self.trained), *self.adapter.latent_shape, device=META)
        log_prob = torch.empty(kept.shape[:2], device=META)
        return Trajectory(kept, kept, kept, log_prob, self.trained, self._latents(count), self._index(count))


__all__ = ["Simulation"]
