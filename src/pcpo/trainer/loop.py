"""PCPOTrainer: rollout, reward, advantage, update, again; with evaluation, events, checkpoints and exact resume."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pcpo import __version__
from pcpo.errors import ConfigError, RewardError
from pcpo.models.base import Adapter
from pcpo.models.folders import read_header
from pcpo.models.loading import adapter_class, wrap_pipeline
from pcpo.models.lora import add_lora, save_tuned, trainable
from pcpo.observe.console import Console
from pcpo.observe.environment import environment
from pcpo.observe.events import EventWriter, read_events
from pcpo.observe.trackers import tracking
from pcpo.trainer import runfolder
from pcpo.trainer.advantage import Advantages
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import load_config, merge, validate
from pcpo.trainer.evaluate import Evaluator
from pcpo.trainer.inputs import make_rewards, prompt_sets
from pcpo.trainer.iteration import Learner
from pcpo.trainer.model import prepare_adapter
from pcpo.trainer.parts import build_algorithm, check_family
from pcpo.trainer.state import TrainState
from pcpo.types import Reward


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
    console  shows the run instead of the terminal's own; None: one made with `quiet`

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
        console: Console | None = None,
    ) -> None:
        if model is not None and not isinstance(model, str | Adapter):
            model = wrap_pipeline(model)
        self.config = config = _with_arguments(config, model, reward, prompts)
        self.folder = runfolder.check_output(config, resume)
        self.prompts, evaluated = prompt_sets(config)
        kind = model.kind if isinstance(model, Adapter) else adapter_class(read_header(config.model.path)).kind
        check_family(config, kind)
        self.reward, held_out = make_rewards(config, reward, [*self.prompts, *evaluated])
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.device = model.device if isinstance(model, Adapter) else _device(config.run.device)

        texts = [prompt.text for prompt in (*self.prompts, *evaluated[: config.evaluation.num_prompts])]
        self.adapter = prepare_adapter(config, model if isinstance(model, Adapter) else None, self.device, texts)
        self.algorithm = build_algorithm(config, self.adapter)
        self._choose_parameters()
        self.advantages = Advantages(config.advantage, config.reward_mix, self.reward.weights)
        self.evaluator = Evaluator(config, self.adapter, self.algorithm, evaluated, self.reward, held_out)
        self.console = console or Console(quiet, config.train.iterations)
        self.state = TrainState(
            trainable(self.adapter.backbone),
            config.optim,
            self.advantages,
            self.algorithm.adaptive,
            loss_scaling=config.run.precision == "fp16",
        )
        self.learner = Learner(
            config,
            self.adapter,
            self.algorithm,
            self.prompts,
            self.reward,
            self.advantages,
            self.state,
            self.console,
        )
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
            try:
                self._run(events)
            except RewardError as error:
                # nothing has changed since the last iteration: its state is worth keeping, the reward may come back
                if self.state.iteration and not self.state.path(self.folder / "checkpoints").exists():
                    self._save(events)
                events.write("warning", message=f"the reward failed: {error}")
                raise
            iteration = self.state.iteration
            with self.state.averaged():
                save_tuned(self.adapter, self.folder, config.model.tune)
            seconds = time.perf_counter() - began
            events.write("run_end", time=time.time(), iterations=iteration, reason="finished", seconds=seconds)
        rewards = [event.reward_mean for event in read_events(events.path).evaluations]
        return Summary(self.folder, iteration, rewards[0], rewards[-1], seconds)

    def _run(self, events: EventWriter) -> None:
        """Iterations, evaluations and checkpoints up to `train.iterations`."""
        config = self.config
        while True:
            iteration = self.state.iteration
            last = iteration == config.train.iterations
            if last or iteration % config.evaluation.every == 0:
                self._evaluate(events)
            if last:
                return
            self.learner.run(events)
            done = self.state.iteration
            if done % config.run.checkpoint_every == 0 or done == config.train.iterations:
                self._save(events)

    def _save(self, events: EventWriter) -> None:
        path = self.state.save(self.folder / "checkpoints")
        events.write("checkpoint", iteration=self.state.iteration, path=str(path.relative_to(self.folder)))

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
        events.write("credit", iteration=self.state.iteration, **algorithm.credit_event())
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
            if self.config.evaluation.save:
                folder = self.folder / "evaluations" / f"{self.state.iteration:06d}"
                save_tuned(self.adapter, folder, self.config.model.tune)
        self.console.evaluation(events.write("evaluation", **event))


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
