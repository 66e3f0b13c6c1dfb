"""One iteration: rollout, reward, advantage, credit, and the optimiser steps on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pcpo.advantages import zero_std_groups, zero_std_mask
from pcpo.data.prompts import Prompt
from pcpo.data.sampler import PromptSampler
from pcpo.errors import RewardError
from pcpo.models.base import Adapter, Conditioning
from pcpo.objectives.compose import make_objective
from pcpo.observe.console import Console
from pcpo.observe.events import EventWriter
from pcpo.rewards.base import NonFiniteReward
from pcpo.trainer.advantage import Advantages
from pcpo.trainer.collect import Request, calls, check_rollout, collect, decode, training_request
from pcpo.trainer.config import Config
from pcpo.trainer.distributed import Runtime
from pcpo.trainer.evaluate import gradient_share
from pcpo.trainer.guard import Guard, NonFinite, Where, check
from pcpo.trainer.measure import StepGradients
from pcpo.trainer.memory import CallSizes
from pcpo.trainer.model import folding
from pcpo.trainer.parts import Algorithm
from pcpo.trainer.scoring import joined, score
from pcpo.trainer.state import TrainState
from pcpo.trainer.step import Policy, SampledWeights, Update
from pcpo.trainer.update import Outcome, Updater
from pcpo.trainer.validity import ValidityGuard
from pcpo.types import Reward, RewardResult, Trajectory

QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


class Learner:
    """Samples, scores and updates: everything that an iteration reads, and the state that it changes.

    Of several processes each samples, scores and trains on its share of the pictures, `rows`; advantages are over whole
    groups and gradients are summed, so that weights and statistics are the same in all of them.
    """

    def __init__(
        self,
        config: Config,
        adapter: Adapter,
        algorithm: Algorithm,
        prompts: Sequence[Prompt],
        reward: Reward,
        advantages: Advantages,
        state: TrainState,
        sizes: CallSizes,
        console: Console,
        runtime: Runtime | None = None,
    ) -> None:
        self.runtime = runtime or Runtime()
        self.rows = self.runtime.share(config.pictures)
        self.config, self.adapter, self.algorithm, self.prompts = config, adapter, algorithm, prompts
        self.reward, self.advantages, self.state, self.console = reward, advantages, state, console
        self.policy = Policy(adapter, algorithm.grid, config.sampler.guidance_scale, algorithm.prediction_scale())
        self.objective = make_objective(config.objective.name, config.objective.clip_range)
        self.sampler = PromptSampler(prompts, config.run.seed)
        self.guard, self.sizes = Guard(config.train.on_nonfinite), sizes
        self.updater = Updater(config, state, self.guard, sizes, console, self.runtime)
        self.validity = ValidityGuard(config.train.max_invalid, config.train.invalid_window)

    def run(self, events: EventWriter) -> None:
        """One rollout and its updates; advances the state and writes the iteration event.

        Raises RewardError, NumericError and MemoryLimitError; the weights are then as the last update left them.
        """
        with folding(self.config, self.adapter):
            self._run(events)

    def _run(self, events: EventWriter) -> None:
        config, state, clock = self.config, self.state, Clock()
        trained, request = self.algorithm.trained(state.iteration), self._request(state.iteration)
        where = Where(state.iteration + 1, request.prompts, request.prompt_index)
        warn = partial(self._warn, events)
        figures: dict[str, Any] = {}
        measured = None
        try:
            update, pictures, advantage = self._collect(request, trained, where, clock, figures, warn)
        except (NonFinite, NonFiniteReward) as error:
            self.guard.leave_out(error, warn)
            figures |= {"steps": trained.tolist(), "skipped": config.train.updates * config.train.epochs}
        else:
            if config.evaluation.credit_probe and state.iteration % config.evaluation.every == 0:
                probe, group_size = config.evaluation.credit_probe, config.batch.group_size
                share = gradient_share(update, advantage, probe, group_size, self.runtime, self.sizes["micro"])
                events.write("gradient_share", iteration=state.iteration, **share)
                clock.lap("probe")
            measures = self.algorithm.adaptive is not None and state.iteration % config.credit.every == 0
            outcome = self.updater.run(update, pictures, where, warn, measures=measures)
            figures |= _update_figures(outcome, trained)
            measured = outcome.measured
            clock.lap("update")

        total = clock.total
        state.iteration += 1
        state.samples += config.pictures
        event = {
            "iteration": state.iteration,
            **figures,
            "learning_rate": config.optim.learning_rate,
            "pictures_per_second": config.pictures / total,
            "seconds": {**clock.seconds, "total": total},
            "samples": state.samples,
        }
        self.console.iteration(events.write("iteration", **event))
        if measured is not None:
            self._adapt(measured, trained, events)

    def _collect(
        self,
        request: Request,
        trained: Tensor,
        where: Where,
        clock: Clock,
        figures: dict[str, Any],
        warn: Callable[[str], object],
    ) -> tuple[Update, Tensor, Tensor]:
        """Sample, score and rank: what the updates need, the pictures [n] to train on, and the advantages [B].

        Adds the reward's figures. Raises NonFinite and NonFiniteReward.
        """
        config = self.config
        texts = [p.text for p in request.prompts]
        cond = self.adapter.encode(texts)
        kept: list[Trajectory] = []
        records = self.runtime.every(lambda: self._roll_out(request, cond, trained, clock, kept, warn))
        trajectory, result = kept[0], joined(records)
        self._check(result)
        figures |= _reward_figures(result)
        groups = (config.batch.prompts, config.batch.group_size)
        advantage, rewards, valid = self.advantages(result, groups, texts)
        figures["zero_std_groups"] = zero_std_groups(rewards, valid)
        pictures = torch.arange(config.pictures)
        flat = advantage.flatten()
        check("advantage", flat, where, pictures=pictures)
        clock.lap("reward")
        if config.train.filter == "zero_std":
            pictures = pictures[~zero_std_mask(rewards, valid).repeat_interleave(config.batch.group_size)]
        update = Update(
            policy=self.policy,
            trajectory=trajectory,
            cond=cond,
            advantage=flat[self.rows].to(self.adapter.device),
            credit=self.algorithm.credit_of(trained),
            stats=self.algorithm.stats[trained],
            objective=self.objective,
            objective_settings=config.objective,
            penalty=config.kl,
            sampled=self._sampled(),
        )
        return update, pictures, flat

    def _roll_out(
        self,
        request: Request,
        cond: Conditioning,
        trained: Tensor,
        clock: Clock,
        kept: list[Trajectory],
        warn: Callable[[str], object],
    ) -> dict[str, Any] | None:
        """Sample this process's pictures, their trajectory into `kept`; their rewards, as `score` records them."""
        config, sizes, rows, algorithm = self.config, self.sizes, self.rows, self.algorithm
        where = Where(self.state.iteration + 1, request.prompts, request.prompt_index[rows])
        stats = algorithm.sampling_stats(trained)

        def sample(size: int) -> Trajectory:
            with self.console.task("rollout", (rows.stop - rows.start) * algorithm.grid.num_steps) as advance:
                parts = calls(self.policy, request, cond, size, advance, rows)
                keep = not config.train.replay
                return collect(parts, algorithm.sampler, stats, trained, config.objective.reduce, keep)

        kept.append(sizes.attempt("rollout", sample, warn))
        check_rollout(kept[0], where)
        clock.lap("rollout")
        images = sizes.attempt("decode", partial(decode, self.adapter, kept[0].latents), warn)
        try:
            return score(self.reward, images, request, rows)
        except NonFiniteReward as error:
            found = f"{where.text(torch.tensor(error.pictures))}, {error.where}"
            raise NonFiniteReward(error.what, error.pictures, where=found, fix=error.fix) from None

    def _sampled(self) -> SampledWeights | None:
        train = self.config.train
        return SampledWeights(self.state.parameters) if train.replay and train.updates * train.epochs > 1 else None

    def _request(self, iteration: int) -> Request:
        config = self.config
        prompts = [self.prompts[i] for i in self.sampler.batch(iteration, config.batch.prompts)]
        return training_request(prompts, config.batch.group_size, config.run.seed, iteration, config.batch.same_noise)

    def _check(self, result: RewardResult) -> None:
        where = f"reward {', '.join(part.name for part in self.config.reward)}"
        if not result.valid.any():
            raise RewardError(
                "abstained on every picture of an iteration, so there is nothing to learn from",
                where=where,
                fix="look at when it sets valid to False",
            )
        self.validity.check(result.valid, where)

    def _adapt(self, measured: StepGradients, trained: Tensor, events: EventWriter) -> None:
        """Take the measurement into the credit of the iterations to come."""
        algorithm = self.algorithm
        assert algorithm.adaptive is not None
        signal, noise = measured.signal_and_noise(algorithm.credit_of(trained).target)
        algorithm.adaptive.observe(algorithm.rows(trained), signal, noise)
        figures = {"measured": trained.tolist(), "signal": signal.tolist(), "noise": noise.tolist()}
        events.write("credit", iteration=self.state.iteration, **algorithm.credit_event(), **figures)

    def _warn(self, events: EventWriter, message: str) -> None:
        self.console.warn(message)
        events.write("warning", message=message, iteration=self.state.iteration)


class Clock:
    """Seconds by phase of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = self._mark = time.perf_counter()

    def lap(self, name: str) -> None:
        """The phase that ends now."""
        now = time.perf_counter()
        self.seconds[name], self._mark = now - self._mark, now

    @property
    def total(self) -> float:
        """Since the iteration began."""
        return time.perf_counter() - self._began


def _reward_figures(result: RewardResult) -> dict[str, Any]:
    scored = result.values[result.valid]
    return {
        "reward_mean": float(scored.mean()),
        "reward_std": float(scored.std(correction=0)),
        "rewards": {name: float(part[result.valid].mean()) for name, part in result.info.items()},
        "invalid": int((~result.valid).sum()),
    }


def _update_figures(outcome: Outcome, trained: Tensor) -> dict[str, Any]:
    metrics = outcome.metrics
    figures = {
        "skipped": outcome.skipped,
        "ratio_error": outcome.ratio_error,
        "grad_norm": outcome.grad_norm,
        "steps": trained.tolist(),
        "loss": metrics.mean("loss"),
        "clip_fraction": metrics.mean("clipped"),
        "clip_fraction_low": metrics.mean("clipped_low"),
        "clip_fraction_high": metrics.mean("clipped_high"),
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
