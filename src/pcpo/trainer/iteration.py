"""One iteration: rollout, reward, advantage, credit, and the optimiser steps on them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pcpo.advantages import zero_std_groups, zero_std_mask
from pcpo.data.prompts import Prompt
from pcpo.data.sampler import PromptSampler
from pcpo.errors import NumericError, RewardError
from pcpo.models.base import Adapter
from pcpo.objectives.compose import make_objective
from pcpo.observe.console import Console
from pcpo.observe.events import EventWriter
from pcpo.rewards.base import evaluate
from pcpo.trainer.advantage import Advantages
from pcpo.trainer.collect import Request, calls, collect, decode, training_request
from pcpo.trainer.config import Config
from pcpo.trainer.evaluate import gradient_share
from pcpo.trainer.measure import StepGradients, split_groups
from pcpo.trainer.metrics import Metrics
from pcpo.trainer.parts import Algorithm
from pcpo.trainer.schedule import micro_batches, minibatches
from pcpo.trainer.state import TrainState
from pcpo.trainer.step import Policy, Update
from pcpo.trainer.validity import ValidityGuard
from pcpo.types import Reward, RewardResult

QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


class Learner:
    """Samples, scores and updates: everything that an iteration reads, and the state that it changes."""

    def __init__(
        self,
        config: Config,
        adapter: Adapter,
        algorithm: Algorithm,
        prompts: Sequence[Prompt],
        reward: Reward,
        advantages: Advantages,
        state: TrainState,
        console: Console,
    ) -> None:
        self.config, self.adapter, self.algorithm, self.prompts = config, adapter, algorithm, prompts
        self.reward, self.advantages, self.state, self.console = reward, advantages, state, console
        self.policy = Policy(adapter, algorithm.grid, config.sampler.guidance_scale, algorithm.prediction_scale())
        self.objective = make_objective(config.objective.name, config.objective.clip_range)
        self.sampler = PromptSampler(prompts, config.run.seed)
        self.validity = ValidityGuard(config.train.max_invalid, config.train.invalid_window)

    def run(self, events: EventWriter) -> None:
        """One rollout and its updates; advances the state and writes the iteration event."""
        config, iteration = self.config, self.state.iteration
        seconds, mark = {}, time.perf_counter()

        def lap(name: str) -> None:
            nonlocal mark
            now = time.perf_counter()
            seconds[name], mark = now - mark, now

        trained = self.algorithm.trained(iteration)
        request = self._request(iteration)
        cond = self.adapter.encode([p.text for p in request.prompts])
        size = config.batch.rollout or config.pictures
        stats = self.algorithm.sampling_stats(trained)
        with self.console.task("rollout", config.pictures * self.algorithm.grid.num_steps) as advance:
            parts = calls(self.policy, request, cond, size, advance)
            trajectory = collect(parts, self.algorithm.sampler, stats, trained, config.objective.reduce)
        lap("rollout")
        result = self._score(request, decode(self.adapter, trajectory.latents, size))
        groups = (config.batch.prompts, config.batch.group_size)
        advantage, rewards, valid = self.advantages(result, groups, [p.text for p in request.prompts])
        lap("reward")

        update = Update(
            policy=self.policy,
            trajectory=trajectory,
            cond=cond,
            advantage=advantage.flatten().to(self.adapter.device),
            credit=self.algorithm.credit_of(trained),
            stats=self.algorithm.stats[trained],
            objective=self.objective,
            objective_settings=config.objective,
            penalty=config.kl,
        )
        if config.evaluation.credit_probe and iteration % config.evaluation.every == 0:
            events.write(
                "gradient_share",
                iteration=iteration,
                **gradient_share(update, config.evaluation.credit_probe, config.batch.group_size),
            )
            lap("probe")
        metrics, grad_norm, ratio_error, measured = self._update(update, rewards, valid)
        lap("update")

        total = sum(seconds.values())
        self.state.iteration += 1
        self.state.samples += config.pictures
        event = {
            "iteration": self.state.iteration,
            **_reward_figures(result),
            "zero_std_groups": zero_std_groups(rewards, valid),
            **_update_figures(metrics, trained),
            "ratio_error": ratio_error,
            "grad_norm": grad_norm,
            "learning_rate": config.optim.learning_rate,
            "pictures_per_second": config.pictures / total,
            "seconds": {**seconds, "total": total},
            "samples": self.state.samples,
        }
        self.console.iteration(events.write("iteration", **event))
        if measured is not None:
            self._adapt(measured, trained, events)

    def _request(self, iteration: int) -> Request:
        config = self.config
        prompts = [self.prompts[i] for i in self.sampler.batch(iteration, config.batch.prompts)]
        return training_request(prompts, config.batch.group_size, config.run.seed, iteration, config.batch.same_noise)

    def _score(self, request: Request, pictures: Tensor) -> RewardResult:
        metadata = [request.prompts[i].metadata for i in request.prompt_index.tolist()]
        result = evaluate(self.reward, pictures, request.texts, metadata)
        where = f"reward {', '.join(part.name for part in self.config.reward)}"
        if not result.valid.any():
            raise RewardError(
                "abstained on every picture of an iteration, so there is nothing to learn from",
                where=where,
                fix="look at when it sets valid to False",
            )
        self.validity.check(result.valid, where)
        return result

    def _adapt(self, measured: StepGradients, trained: Tensor, events: EventWriter) -> None:
        """Take the measurement into the credit of the iterations to come."""
        algorithm = self.algorithm
        assert algorithm.adaptive is not None
        signal, noise = measured.signal_and_noise(algorithm.credit_of(trained).target)
        algorithm.adaptive.observe(algorithm.rows(trained), signal, noise)
        figures = {"measured": trained.tolist(), "signal": signal.tolist(), "noise": noise.tolist()}
        events.write("credit", iteration=self.state.iteration, **algorithm.credit_event(), **figures)

    def _measuring(self, pictures: Tensor, steps: int) -> StepGradients | None:
        """What measures the first minibatch of an iteration, where the credit schedule asks for it."""
        credit, group_size = self.config.credit, self.config.batch.group_size
        if self.algorithm.adaptive is None or self.state.iteration % credit.every:
            return None
        if len(split_groups(pictures, group_size)) < 2:
            return None
        return StepGradients(self.state.parameters, pictures, steps, group_size)

    def _update(
        self, update: Update, rewards: Tensor, valid: Tensor
    ) -> tuple[Metrics, float, float, StepGradients | None]:
        """All optimiser steps on one rollout. Returns metrics, last gradient norm, first log-ratio error, measurement.

        The first minibatch is measured: at the sampling policy nothing is clipped yet and m has no quadratic part.
        """
        config = self.config
        pictures = torch.arange(config.pictures)
        if config.train.filter == "zero_std":
            pictures = pictures[~zero_std_mask(rewards, valid).repeat_interleave(config.batch.group_size)]
        steps = len(update.trajectory.steps)
        size = config.batch.micro or config.batch.rollout or config.pictures
        metrics, ratio_error, grad_norm = Metrics(steps), 0.0, 0.0
        measured = None
        total = len(pictures) * steps * config.train.epochs
        with self.console.task("update", total) as advance:
            for epoch in range(config.train.epochs):
                parts = minibatches(pictures, config.train.updates, config.run.seed, self.state.iteration, epoch)
                for count, part in enumerate(parts):
                    first = epoch == count == 0
                    gradients = self._measuring(part, steps) if first else None
                    for rows, positions in gradients.batches(size) if gradients else micro_batches(part, steps, size):
                        out = update.loss(rows, positions)
                        scaler = self.state.scaler
                        scaler.scale(out.per_step.sum() / (len(part) * steps)).backward()
                        if gradients is not None:
                            gradients.take(positions, scaler.get_scale())
                        metrics.add(out, positions)
                        del out  # its spent graph would hold memory during the next forward pass
                        advance(len(rows))
                    if first:
                        measured = gradients
                        ratio_error = metrics.max_abs("log_ratio")
                    norm = self._optimise()
                    if math.isfinite(norm):
                        grad_norm = norm
                    elif first:
                        measured = None
        return metrics, grad_norm, ratio_error, measured

    def _optimise(self) -> float:
        """One optimiser step; returns the gradient norm, not finite where fp16 overflowed and the step was left out."""
        state = self.state
        state.scaler.unscale_(state.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(state.parameters, self.config.optim.max_grad_norm))
        can_lower_scale = state.scaler.is_enabled() and state.scaler.get_scale() > 1
        if not math.isfinite(norm) and not can_lower_scale:
            raise NumericError(
                f"the gradient norm is {norm}; no weight was changed by this step",
                where=f"iteration {state.iteration + 1}",
                fix="lower optim.learning_rate, or look at the reward and run.precision",
            )
        state.step()
        return norm


def _reward_figures(result: RewardResult) -> dict[str, Any]:
    scored = result.values[result.valid]
    return {
        "reward_mean": float(scored.mean()),
        "reward_std": float(scored.std(correction=0)),
        "rewards": {name: float(part[result.valid].mean()) for name, part in result.info.items()},
        "invalid": int((~result.valid).sum()),
    }


def _update_figures(metrics: Metrics, trained: Tensor) -> dict[str, Any]:
    figures = {
        "steps": trained.tolist(),
        "loss": metrics.mean("loss"),
        "clip_fraction": metrics.mean("clipped"),
        "clip_fraction_per_step": metrics.per_step("clipped"),
        "approx_kl": metrics.mean("approx_kl"),
        "log_ratio_std_per_step": metrics.std_per_step("log_ratio"),
        "log_ratio_quantiles_per_step": dict(
            zip(QUANTILES, metrics.quantiles_per_step("log_ratio", list(QUANTILES.values())), strict=True)
        ),
    }
    if metrics.has("kl_ref"):
        figures["kl_ref"] = metrics.mean("kl_ref")
    return figures
