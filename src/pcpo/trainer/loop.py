"""PCPOTrainer: rollout, reward, advantage, update, again; with evaluation, events, checkpoints and exact resume."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from pcpo import __version__
from pcpo.errors import (
    CheckpointError,
    DistributedError,
    Interrupted,
    MemoryLimitError,
    NumericError,
    PCPOError,
    RewardError,
    RunFolderError,
)
from pcpo.models.base import Adapter
from pcpo.models.device import find_device
from pcpo.models.loading import wrap_pipeline
from pcpo.models.lora import add_lora, save_tuned, trainable
from pcpo.observe.console import Console
from pcpo.observe.environment import environment
from pcpo.observe.events import EventWriter, NoEvents, read_events
from pcpo.observe.trackers import tracking
from pcpo.plan.precheck import check_model
from pcpo.trainer import distributed, runfolder
from pcpo.trainer.advantage import Advantages
from pcpo.trainer.checkpoint import list_checkpoints, load_newest
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import load_config, merge, validate
from pcpo.trainer.evaluate import Evaluator
from pcpo.trainer.inputs import make_rewards, prompt_sets
from pcpo.trainer.iteration import Learner
from pcpo.trainer.lock import RunLock
from pcpo.trainer.memory import CallSizes
from pcpo.trainer.model import checkpoint_gradients, prepare_adapter
from pcpo.trainer.parts import build_algorithm, check_family
from pcpo.trainer.saving import Saver
from pcpo.trainer.signals import StopSignals
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
    resume   continue the run in the output folder from its newest valid checkpoint
    quiet    print warnings only
    console  shows the run instead of the terminal's own; None: one made with `quiet`
    allow_change  names of settings, or sections of them, that may differ from those of the run that is resumed

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
        allow_change: Sequence[str] = (),
    ) -> None:
        if model is not None and not isinstance(model, str | Adapter):
            model = wrap_pipeline(model)
        self.config = config = _with_arguments(config, model, reward, prompts)
        self.runtime = distributed.start(config, reward)
        self.folder = runfolder.output_folder(config)
        self.runtime.main(lambda: runfolder.check_output(config, resume, allow_change))
        self.prompts, evaluated = prompt_sets(config)
        if isinstance(model, Adapter):
            check_family(config, model.kind)
        else:
            check_model(config)
        self.reward, held_out = make_rewards(config, reward, [*self.prompts, *evaluated])
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.device = model.device if isinstance(model, Adapter) else self._device()

        texts = [prompt.text for prompt in (*self.prompts, *evaluated[: config.evaluation.num_prompts])]
        self.adapter = prepare_adapter(config, model if isinstance(model, Adapter) else None, self.device, texts)
        self.algorithm = build_algorithm(config, self.adapter)
        self._choose_parameters()
        if config.run.compile:
            self.adapter.compile()
        self.runtime.shard(self.adapter)
        self.advantages = Advantages(config.advantage, config.reward_mix, self.reward.weights)
        self.signals = StopSignals()
        scored = self.signals.stoppable(self.reward)
        rows = self.runtime.share(config.pictures)
        limits: dict[str, Any] = {"checkpoint": partial(checkpoint_gradients, self.adapter)}
        sizes = CallSizes(config, rows.stop - rows.start, **({"limit": 0} if self.runtime.sharded else limits))
        self.evaluator = Evaluator(
            config, self.adapter, self.algorithm, evaluated, scored, sizes, held_out, self.runtime
        )
        self.console = console if console and self.is_main else self._new_console(quiet)
        if not self.runtime.sharded:  # there the processes meet in every model call, and only in between may one stop
            self.console.on_progress = self.signals.check
        self.state = TrainState(
            trainable(self.adapter.backbone),
            config.optim,
            self.advantages,
            sizes,
            self.algorithm.adaptive,
            loss_scaling=config.run.precision == "fp16",
            zero=self.runtime.split_optimizer(self.adapter, config),
        )
        self.learner = Learner(
            config,
            self.adapter,
            self.algorithm,
            self.prompts,
            scored,
            self.advantages,
            self.state,
            sizes,
            self.console,
            self.runtime,
        )
        self.saver = Saver(self.folder, config, self.state, self.console, self.runtime)
        self.runtime.main(lambda: runfolder.check_space(self.folder, self._space()))
        self._resume = resume
        self._passed_over = self._load(allow_change) if resume else []
        self._known = list_checkpoints(self.saver.parent)
        self.state.mark()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder: the only one, or the first of several."""
        return self.runtime.is_main

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline with the tuned weights in it."""
        return self.adapter.pipe

    def train(self) -> Summary:
        """Run to `train.iterations`, writing events, pictures, checkpoints and the tuned weights.

        Whatever stops it, the last finished iteration is saved first. Raises Interrupted after SIGINT or SIGTERM, and
        CheckpointError when the run is done but its last checkpoint could not be saved.
        """
        began = time.perf_counter()
        with ExitStack() as held:
            self.runtime.main(lambda: held.enter_context(RunLock(self.folder)) and None)
            self.runtime.main(self._claim)
            if not self.state.roll_back():
                raise NumericError(
                    "was stopped between two updates of an iteration",
                    where=str(self.folder),
                    fix="make a new trainer with resume=True",
                )
            self._train(began)
            before, after = self.runtime.every(self._outcome)[0]
        return Summary(self.folder, self.state.iteration, before, after, time.perf_counter() - began)

    def _outcome(self) -> tuple[float | None, float | None]:
        """Rewards of the first and the last evaluation, as the main process knows them."""
        if self.saver.failed is not None:
            raise CheckpointError(
                f"the run is finished and its weights are saved, but its last checkpoint {self.saver.failed.what}",
                where=str(self.folder),
                fix="free space or mend the disk, then run it with --resume",
            )
        if not self.is_main:
            return None, None
        evaluations = read_events(self.folder / "events.jsonl").evaluations
        return evaluations[0].reward_mean, evaluations[-1].reward_mean

    @contextmanager
    def _log(self) -> Iterator[EventWriter]:
        if not self.is_main:
            yield NoEvents()
            return
        run = self.config.run
        with (
            tracking(run.tracker, self.config.name, self.folder) as tracker,
            EventWriter(self.folder / "events.jsonl", tracker) as events,
        ):
            yield events

    def _train(self, began: float) -> None:
        config = self.config
        with self._log() as events, self.console, self.signals:
            self._announce(events)
            try:
                self._iterate(events)
            except Interrupted as error:
                words = self.runtime.every(lambda: self._save_border(events))[0]
                raise Interrupted(error.number, f"{self.folder}: {words}") from None
            except Exception as error:
                if self.state.finished and self._all_know(error):  # worth keeping: a reward may come back
                    self.saver.save_border(events)
                if isinstance(error, RewardError):
                    events.write("warning", message=f"the reward failed: {error}", iteration=self.state.iteration)
                raise
            finally:
                self._known = list_checkpoints(self.saver.parent)
            with self.state.averaged():
                self.runtime.main(lambda: save_tuned(self.adapter, self.folder, config.model.tune))
            events.write(
                "run_end",
                time=time.time(),
                iterations=self.state.iteration,
                reason="finished",
                seconds=time.perf_counter() - began,
            )

    def _all_know(self, error: Exception) -> bool:
        """Whether all processes are here, where they must meet in order to save: a split optimiser."""
        alone = not isinstance(error, PCPOError) or isinstance(error, DistributedError | MemoryLimitError)
        return self.state.zero is None or not alone

    def _save_border(self, events: EventWriter) -> str:
        """Save the last finished iteration; returns words that say so."""
        saved = self.saver.save_border(events)
        return f"saved as checkpoint {saved.name}, go on with --resume" if saved else "nothing could be saved"

    def _iterate(self, events: EventWriter) -> None:
        train, evaluation = self.config.train, self.config.evaluation
        while True:
            # An iteration that makes one update is not begun or done when that is refused; in the midst of several
            # only a copy leads back.
            self.state.mark(copy=train.updates * train.epochs > 1)
            self.runtime.every(self.signals.check)
            last = self.state.iteration == train.iterations
            if last or self.state.iteration % evaluation.every == 0:
                self._evaluate(events)
            if last:
                return
            self.learner.run(events)
            if self.saver.is_due():
                self.saver.save(events)

    def _load(self, allow_change: Sequence[str]) -> list[CheckpointError]:
        """Take over the newest valid checkpoint; returns why newer ones were passed over."""
        snapshot, passed_over = load_newest(self.saver.parent)
        if snapshot is not None:
            stored = validate(snapshot.config, f"checkpoint {snapshot.iteration:06d}")
            runfolder.refuse_changes(stored, self.config, self.folder, allow_change)
            self.state.restore(snapshot)
        return passed_over

    def _claim(self) -> None:
        """Make the locked folder this trainer's, with the random states of the moment when it was made."""
        if self._resume and self._known != list_checkpoints(self.saver.parent):
            raise RunFolderError(
                "was continued by another process in the meantime", where=str(self.folder), fix="resume it again"
            )
        runfolder.claim(self.folder, self.config, self._resume)
        runfolder.put_aside([Path(error.where) for error in self._passed_over])

    def _device(self) -> torch.device:
        return distributed.local_device() if self.runtime.world > 1 else find_device(self.config.run.device)

    def _new_console(self, quiet: bool) -> Console:
        """The terminal belongs to the main process."""
        if self.is_main:
            return Console(quiet, self.config.train.iterations)
        return Console(True, self.config.train.iterations, file=io.StringIO())

    def _space(self) -> int:
        """Bytes that checkpoints (one more than are kept), weights and pictures may still take."""
        config = self.config
        weights = sum(p.numel() * p.element_size() for p in self.state.parameters)
        checkpoint = weights * (3 + (self.state.ema is not None))  # AdamW keeps two moments
        more = max(1, config.run.keep_checkpoints + 1 - len(list_checkpoints(self.saver.parent)))
        evaluations = config.train.iterations // config.evaluation.every + 2
        pictures = config.evaluation.num_prompts * config.evaluation.per_prompt
        return checkpoint * more + weights + evaluations * pictures * 3 * self.adapter.resolution**2

    def _choose_parameters(self) -> None:
        settings = self.config.model
        set_seed(self.config.run.seed)  # Python's, numpy's and torch's: a reward may draw from any
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
            resumed_from=self.state.iteration if self._resume else None,
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
                **({"processes": self.runtime.world} if self.runtime.world > 1 else {}),
                **({"resumed": self._resumed()} if self._resume else {}),
            }
        )
        if self._passed_over:
            newest = "; ".join(f"{Path(error.where).name} {error.what}" for error in self._passed_over)
            self.saver.warn(events, f"resumed {self._resumed()}, for newer ones are not valid (kept as .bad): {newest}")
        self._resume, self._passed_over = True, []  # the folder is this trainer's from now on

    def _resumed(self) -> str:
        done = self.state.iteration
        return f"from checkpoint {done:06d}" if done else "from the start: no checkpoint yet"

    def _evaluate(self, events: EventWriter) -> None:
        with self.state.averaged():
            warn = partial(self.saver.warn, events)
            event = self.evaluator.run(self.state.iteration, self.folder, self.console, warn)
            if self.config.evaluation.save:
                folder = self.folder / "evaluations" / f"{self.state.iteration:06d}"
                self.runtime.main(lambda: save_tuned(self.adapter, folder, self.config.model.tune))
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
