"""PCPOTrainer: rollout, reward, advantage, update, again; with evaluation, events, checkpoints and exact resume."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcpo import __version__
from pcpo.advantages import zero_std_groups, zero_std_mask
from pcpo.data.prompts import load_prompts
from pcpo.data.sampler import PromptSampler
from pcpo.errors import ConfigError, NumericError, RewardError
from pcpo.models.base import Adapter
from pcpo.models.folders import read_header
from pcpo.models.loading import adapter_class, load_adapter, wrap_pipeline
from pcpo.models.lora import add_lora, save_tuned, trainable
from pcpo.objectives.compose import make_objective
from pcpo.observe.console import Console
from pcpo.observe.environment import environment
from pcpo.observe.events import EventWriter, read_events
from pcpo.observe.trackers import tracking
from pcpo.rewards.base import evaluate
from pcpo.rewards.mixing import WeightedSum
from pcpo.rewards.registry import build_rewards
from pcpo.trainer import runfolder
from pcpo.trainer.advantage import Advantages
from pcpo.trainer.collect import Request, calls, collect, decode, training_request
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import load_config, merge, validate
from pcpo.trainer.evaluate import Evaluator, gradient_share
from pcpo.trainer.metrics import Metrics
from pcpo.trainer.parts import build_algorithm, check_family
from pcpo.trainer.schedule import micro_batches, minibatches
from pcpo.trainer.state import TrainState
from pcpo.trainer.step import Policy, Update
from pcpo.types import Reward, RewardResult


@dataclass(frozen=True)
class Summary:
    """What a finished run says about itself; rewards are those of its first and last evaluation, resumed or not."""

    output: Path
    iterations: int
    reward_before: float | None
    reward_after: float | None
    seconds: float


class PCPOTrainer:
    """Tune a text-to-image model on a reward.

    model    embedded name, pipeline folder or hub id, a diffusers pipeline or an Adapter; None: what the configuration
             says
    reward   any callable (see pcpo.types.Reward); None: what the configuration says
    config   a Config, a mapping of settings, or the name of a preset or YAML file
    prompts  a list of texts, a prompts file or an embedded set; None: what the configuration says
    resume   continue the run in the output folder from its newest checkpoint
    quiet    print warnings only

    Everything that can be refused without the weights is refused before they are loaded. Raises PCPOError.
    """

    def __init__(
        self,
        model: str | Adapter | Any | None = None,
        reward: Reward | None = None,
        config: Config | Mapping[str, Any] | str = "pcpo_sd",
        prompts: str | Sequence[str] | None = None,
        *,
        resume: bool = False,
        quiet: bool = False,
    ) -> None:
        if model is not None and not isinstance(model, str | Adapter):
            model = wrap_pipeline(model)
        self.config = config = _with_arguments(config, model, reward, prompts)
        self.folder = runfolder.check_output(config, resume)
        self.prompts = load_prompts(config.prompts)
        held_out = load_prompts(config.evaluation.prompts) if config.evaluation.prompts else self.prompts
        kind = model.kind if isinstance(model, Adapter) else adapter_class(read_header(config.model.path)).kind
        check_family(config, kind)
        self.reward = (
            WeightedSum([(config.reward[0].name, reward, 1.0)])
            if reward is not None
            else build_rewards([(part.name, part.weight, part.options) for part in config.reward])
        )
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.device = model.device if isinstance(model, Adapter) else _device(config.run.device)

        settings = config.model
        self.adapter = (
            model
            if isinstance(model, Adapter)
            else load_adapter(settings.path, self.device, settings.resolution, settings.max_sequence_length)
        )
        self.adapter.autocast = torch.bfloat16 if config.run.precision == "bf16" else None
        self.algorithm = build_algorithm(config, self.adapter)
        self._choose_parameters()
        self.policy = Policy(
            self.adapter,
            self.algorithm.grid,
            config.sampler.guidance_scale,
            self.algorithm.prediction_scale(),
        )
        self.objective = make_objective(config.objective.name, config.objective.clip_range)
        self.advantages = Advantages(config.advantage)
        self.sampler = PromptSampler(self.prompts, config.run.seed)
        self.evaluator = Evaluator(config, self.adapter, self.algorithm, held_out, self.reward)
        self.console = Console(quiet, config.train.iterations)
        self.state = TrainState(trainable(self.adapter.backbone), config.optim, self.advantages)
        if resume:
            self.state.load_newest(self.folder / "checkpoints")

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline with the tuned weights in it."""
        return self.adapter.pipe

    def train(self) -> Summary:
        """Run to `train.iterations`, writing events, pictures, checkpoints and the tuned weights."""
        config, began = self.config, time.perf_counter()
        runfolder.create(self.folder, config)
        with (
            tracking(config.run.tracker, config.name, self.folder) as tracker,
            EventWriter(self.folder / "events.jsonl", tracker) as events,
            self.console,
        ):
            self._announce(events)
            while True:
                iteration = self.state.iteration
                last = iteration == config.train.iterations
                if last or iteration % config.evaluation.every == 0:
                    self._evaluate(events)
                if last:
                    break
                self._iterate(events)
                if (
                    self.state.iteration % config.run.checkpoint_every == 0
                    or self.state.iteration == config.train.iterations
                ):
                    path = self.state.save(self.folder / "checkpoints")
                    events.write("checkpoint", iteration=self.state.iteration, path=str(path.relative_to(self.folder)))
            with self.state.averaged():
                save_tuned(self.adapter, self.folder, config.model.tune)
            seconds = time.perf_counter() - began
            events.write("run_end", time=time.time(), iterations=iteration, reason="finished", seconds=seconds)
        rewards = [event.reward_mean for event in read_events(events.path).evaluations]
        return Summary(self.folder, iteration, rewards[0], rewards[-1], seconds)

    def _choose_parameters(self) -> None:
        settings = self.config.model
        torch.manual_seed(self.config.run.seed)
        if settings.tune == "lora":
            add_lora(self.adapter, settings.lora.rank, settings.lora.alpha, settings.lora.targets)
            return
        if self.config.kl.form != "none" or self.config.credit.apply == "lambda":
            self.adapter.keep_reference()
        self.adapter.unwrapped.requires_grad_(True)

    def _announce(self, events: EventWriter) -> None:
        config, algorithm = self.config, self.algorithm
        tuned = sum(p.numel() for p in self.state.parameters)
        events.write(
            "run_start",
            time=time.time(),
            version=__version__,
            run_name=config.name,
            config=config.model_dump(mode="json"),
            environment=environment(),
            num_parameters=sum(p.numel() for p in self.adapter.unwrapped.parameters()),
            trainable_parameters=tuned,
        )
        stats = algorithm.stats[algorithm.eligible]
        events.write(
            "credit",
            steps=algorithm.eligible.tolist(),
            num_steps=algorithm.grid.num_steps,
            native=algorithm.credit.native.tolist(),
            target=algorithm.credit.target.tolist(),
            **{name: getattr(stats, name).tolist() for name in ("t", "dt", "std")},
        )
        self.console.header(
            {
                "model": f"{config.model.path} ({tuned:,} trained parameters, {config.model.tune})",
                "algorithm": f"{config.name}: {config.sampler.name}, credit {config.credit.schedule}, "
                f"objective {config.objective.name}, advantage {config.advantage.name}",
                "reward": ", ".join(part.name for part in config.reward),
                "batch": f"{config.batch.prompts} prompts x {config.batch.group_size} pictures, "
                f"{config.sampler.steps} steps, {len(algorithm.trained(0))} trained",
                "output": str(self.folder),
            }
        )

    def _evaluate(self, events: EventWriter) -> None:
        with self.state.averaged():
            event = self.evaluator.run(self.state.iteration, self.folder, self.console)
        self.console.evaluation(events.write("evaluation", **event))

    def _iterate(self, events: EventWriter) -> None:
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
        rewards, valid = result.values.view(groups), result.valid.view(groups)
        advantage = self.advantages(rewards, valid, [p.text for p in request.prompts])
        lap("reward")

        update = Update(
            policy=self.policy,
            trajectory=trajectory,
            cond=cond,
            advantage=advantage.flatten().to(self.device),
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
                **gradient_share(update, config.evaluation.credit_probe),
            )
            lap("probe")
        metrics, grad_norm, ratio_error = self._update(update, rewards, valid)
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

    def _request(self, iteration: int) -> Request:
        config = self.config
        prompts = [self.prompts[i] for i in self.sampler.batch(iteration, config.batch.prompts)]
        return training_request(prompts, config.batch.group_size, config.run.seed, iteration, config.batch.same_noise)

    def _score(self, request: Request, pictures: Tensor) -> RewardResult:
        metadata = [request.prompts[i].metadata for i in request.prompt_index.tolist()]
        result = evaluate(self.reward, pictures, request.texts, metadata)
        if not result.valid.any():
            raise RewardError(
                "abstained on every picture of an iteration, so there is nothing to learn from",
                where=f"reward {', '.join(part.name for part in self.config.reward)}",
                fix="look at when it sets valid to False",
            )
        return result

    def _update(self, update: Update, rewards: Tensor, valid: Tensor) -> tuple[Metrics, float, float]:
        """All optimiser steps on one rollout. Returns metrics, last gradient norm, and the first log-ratio error."""
        config = self.config
        pictures = torch.arange(config.pictures)
        if config.train.filter == "zero_std":
            pictures = pictures[~zero_std_mask(rewards, valid).repeat_interleave(config.batch.group_size)]
        steps = len(update.trajectory.steps)
        size = config.batch.micro or config.batch.rollout or config.pictures
        metrics, ratio_error, grad_norm = Metrics(steps), 0.0, 0.0
        total = len(pictures) * steps * config.train.epochs
        with self.console.task("update", total) as advance:
            for epoch in range(config.train.epochs):
                parts = minibatches(pictures, config.train.updates, config.run.seed, self.state.iteration, epoch)
                for count, part in enumerate(parts):
                    for rows, positions in micro_batches(part, steps, size):
                        out = update.loss(rows, positions)
                        (out.per_step.sum() / (len(part) * steps)).backward()
                        metrics.add(out, positions)
                        del out  # its spent graph would hold memory during the next forward pass
                        advance(len(rows))
                    if epoch == count == 0:
                        ratio_error = metrics.max_abs("log_ratio")
                    grad_norm = self._optimise()
        return metrics, grad_norm, ratio_error

    def _optimise(self) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self.state.parameters, self.config.optim.max_grad_norm))
        if not torch.isfinite(torch.tensor(norm)):
            raise NumericError(
                f"the gradient norm is {norm}; no weight was changed by this step",
                where=f"iteration {self.state.iteration + 1}",
                fix="lower optim.learning_rate, or look at the reward and run.precision",
            )
        self.state.step()
        return norm


def _with_arguments(
    config: Config | Mapping[str, Any] | str,
    model: str | Adapter | None,
    reward: Reward | None,
    prompts: str | Sequence[str] | None,
) -> Config:
    """The configuration with the arguments of the constructor laid on it, validated, so that the run records them."""
    if isinstance(config, str):
        config = load_config(config)
    data = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
    if model is not None:
        data = merge(data, {"model": {"path": model if isinstance(model, str) else model.path}})
    if reward is not None:
        data["reward"] = getattr(reward, "__qualname__", type(reward).__qualname__)
    if prompts is not None:
        data["prompts"] = prompts if isinstance(prompts, str) else list(prompts)
    return validate(data)


def _device(name: str) -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return found or torch.device("cpu")
    if name != "cpu" and (found is None or found.type != name):
        raise ConfigError(f"this machine has no {name} device", where="run.device", fix="use auto or cpu")
    return torch.device(name)


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
    }
    if metrics.has("kl_ref"):
        figures["kl_ref"] = metrics.mean("kl_ref")
    return figures
