"""The second half of an iteration: the optimiser steps on one rollout, each made whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import clip_grad_norm_

from pcpo.observe.console import Console
from pcpo.trainer.config import Config
from pcpo.trainer.distributed import Runtime
from pcpo.trainer.guard import Guard, NonFinite, Where, check, check_tensors
from pcpo.trainer.measure import StepGradients, split_groups
from pcpo.trainer.memory import CallSizes
from pcpo.trainer.metrics import Metrics
from pcpo.trainer.schedule import count_calls, micro_batches, minibatches, own_rows
from pcpo.trainer.state import TrainState
from pcpo.trainer.step import Update

SHARE_OF_CLIP = 0.01  # a first log-ratio that is not 0 is harmless below this share of the clip range


@dataclass
class Outcome:
    """What the optimiser steps on one rollout came to.

    metrics      of all steps that were made
    grad_norm    of the last one, before clipping
    ratio_error  largest absolute log-ratio of the first minibatch; None where that was left out
    skipped      steps left out for a value that is not finite
    measured     gradients of the first minibatch, where the credit schedule asks for them
    """

    metrics: Metrics
    grad_norm: float = 0.0
    ratio_error: float | None = 0.0
    skipped: int = 0
    measured: StepGradients | None = None


class Updater:
    """Makes the optimiser steps of an iteration; `measures` says whether a credit schedule wants gradients of it.

    Of several processes each adds up the gradients of its rows; the sum over the processes, and every decision that
    depends on a value, is the same in all of them.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        guard: Guard,
        sizes: CallSizes,
        console: Console,
        runtime: Runtime | None = None,
    ) -> None:
        self.runtime = runtime or Runtime()
        self.rows = self.runtime.share(config.pictures)
        self.config, self.state, self.guard, self.sizes, self.console = config, state, guard, sizes, console
        self._warned = False

    def run(
        self, update: Update, pictures: Tensor, where: Where, warn: Callable[[str], object], *, measures: bool = False
    ) -> Outcome:
        """`train.epochs` passes of `train.updates` optimiser steps over pictures [n] of a rollout.

        The first minibatch is measured: at the sampling policy nothing is clipped yet and m has no quadratic part.
        Raises NumericError and MemoryLimitError; what the minibatch in question would have changed is unchanged then.
        """
        train, steps = self.config.train, len(update.trajectory.steps)
        outcome = Outcome(Metrics(steps))
        with self.console.task("update", len(own_rows(pictures, self.rows)) * steps * train.epochs) as advance:
            for epoch in range(train.epochs):
                parts = minibatches(pictures, train.updates, self.config.run.seed, self.state.iteration, epoch)
                for number, part in enumerate(parts):
                    first = epoch == number == 0
                    place = where.within(f"{epoch * len(parts) + number + 1} of {len(parts) * train.epochs}")
                    metrics, measured = self._accumulate(update, part, first and measures, advance, warn)
                    if first:
                        self._look_at_ratio(update, part, metrics, warn, exact=measured is None)
                    try:
                        norm = self._step(update, metrics, place)
                    except NonFinite as error:
                        self.guard.leave_out(error, warn)
                        outcome.skipped += 1
                        outcome.ratio_error = None if first else outcome.ratio_error
                        continue
                    if first:
                        outcome.ratio_error = metrics.max_abs("log_ratio")
                    outcome.metrics.extend(metrics)
                    if math.isfinite(norm):
                        outcome.grad_norm = norm
                        outcome.measured = measured if first else outcome.measured
        return outcome

    def _accumulate(
        self,
        update: Update,
        part: Tensor,
        measures: bool,
        advance: Callable[..., None],
        warn: Callable[[str], object],
    ) -> tuple[Metrics, StepGradients | None]:
        """The gradient of this process's rows of a minibatch, in as many calls as memory asks for; metrics of all rows.

        The loss is a sum over the rows, divided by the number of pairs in all processes.
        """
        steps, done = len(update.trajectory.steps), 0
        own = own_rows(part, self.rows)
        kept: list[tuple[Metrics, StepGradients | None]] = []

        def attempt(size: int) -> tuple[Metrics, StepGradients | None]:
            nonlocal done
            self.state.zero_grad()
            advance(-done)
            done, metrics = 0, Metrics(steps)
            gradients = self._measuring(part, steps) if measures else None
            fill = size if gradients is None and size == self.sizes["rollout"] else 0
            for rows, positions in gradients.batches(size) if gradients else micro_batches(own, steps, size):
                out = update.loss(rows, positions, fill)
                self.state.backward(out.per_step.sum() / (len(part) * steps))
                if gradients is not None:
                    gradients.take(positions, self.state.scaler.get_scale())
                metrics.add(out, rows + self.rows.start, positions)
                del out  # its spent graph would hold memory during the next forward pass
                done += len(rows)
                advance(len(rows))
            for _ in range(self._idle_calls(part, steps, size)):
                none = torch.zeros(1, dtype=torch.long)
                self.state.backward(update.loss(none, none, fill).per_step.sum() * 0)
            return metrics, gradients

        self.runtime.every(lambda: kept.append(self.sizes.attempt("micro", attempt, warn)))
        metrics, gradients = kept[0]
        metrics.gather(self.runtime)
        if gradients is not None:
            self.runtime.sum(gradients.rows)
        return metrics, gradients

    def _idle_calls(self, part: Tensor, steps: int, size: int) -> int:
        """Model calls that another process makes more, where all must make as many."""
        if not self.runtime.sharded:
            return 0
        length = self.rows.stop - self.rows.start
        shares = torch.bincount(part // length, minlength=self.runtime.world).tolist()
        counts = [count_calls(share, steps, size) for share in shares]
        return max(counts) - counts[self.runtime.rank]

    def _measuring(self, pictures: Tensor, steps: int) -> StepGradients | None:
        group_size = self.config.batch.group_size
        if len(split_groups(pictures, group_size)) < 2:
            return None
        return StepGradients(self.state.parameters, pictures, steps, group_size, self.rows)

    def _step(self, update: Update, metrics: Metrics, where: Where) -> float:
        """Make the optimiser step if everything is finite; returns the norm. Raises NonFinite, gradients dropped."""
        steps = update.trajectory.steps[metrics.positions]
        try:
            for site, name in (("log-ratio", "log_ratio"), ("loss", "loss")):
                check(site, metrics.values(name), where, pictures=metrics.pictures, steps=steps)
            return self._optimise(where)
        except NonFinite:
            self.state.zero_grad()
            raise

    def _optimise(self, where: Where) -> float:
        """One optimiser step; returns the gradient norm, not finite where fp16 overflowed and the step was left out."""
        state = self.state
        if state.ema is not None:
            check_tensors("EMA", state.names, state.ema.shadow_params, where)
        if (zero := state.zero) is not None:
            norm = self.runtime.meet(lambda: state.step_split(zero))
            check("gradient", torch.tensor(norm), where)
            self.guard.updated()
            return norm
        self.runtime.sum_gradients(state.parameters)
        state.scaler.unscale_(state.optimizer)
        norm = float(clip_grad_norm_(state.parameters, self.config.optim.max_grad_norm))
        can_lower_scale = state.scaler.is_enabled() and state.scaler.get_scale() > 1
        if not math.isfinite(norm) and not can_lower_scale:
            if state.scaler.is_enabled():
                state.scaler.update()  # else it would refuse to unscale the next minibatch
            check_tensors("gradient", state.names, [p.grad for p in state.parameters], where)
            check("gradient", torch.tensor(norm), where)  # finite numbers, and a norm beyond float32
        state.step()
        self.guard.updated()
        return norm

    def _look_at_ratio(
        self, update: Update, part: Tensor, metrics: Metrics, warn: Callable[[str], object], *, exact: bool
    ) -> None:
        """Warn, once, when the first log-ratio of a rollout is not what it should be: 0.

        Exactly 0 is asked for on the CPU in fp32 where the update's calls are of the rollout's shape; elsewhere kernels
        may round differently, and 1 % of the clip range is let pass.
        """
        adapter, settings = update.policy.adapter, self.config
        same_shape = exact and self.sizes["micro"] == self.sizes["rollout"]
        exact = same_shape and adapter.device.type == "cpu" and settings.run.precision == "fp32"
        error = metrics.max_abs("log_ratio")
        allowed = 0.0 if exact else SHARE_OF_CLIP * settings.objective.clip_range
        if self._warned or not math.isfinite(error) or error <= allowed:
            return
        self._warned = True
        causes = {
            "dropout or batch norm in training mode": any(map(_is_random, adapter.unwrapped.modules())),
            f"calls of {self.sizes['micro']} rows here and {self.sizes['rollout']} in the rollout": not same_shape,
            "TF32 or cuDNN autotuning": adapter.device.type == "cuda",
            f"autocast to {settings.run.precision} in one of the two only": settings.run.precision != "fp32",
            "an attention kernel that is not deterministic": True,
            "a LoRA scale or weight changed since the rollout": True,
        }
        warn(
            f"the first log-ratio of a rollout is {error:.2g} at the most, and should be 0 "
            f"(clip range {settings.objective.clip_range:g}): the update does not repeat the rollout's predictions; "
            f"likely causes: {', '.join(cause for cause, possible in causes.items() if possible)}"
        )


def _is_random(module: nn.Module) -> bool:
    """Whether its output depends on more than its input: peft leaves modules without dropout in training mode too."""
    dropping = isinstance(module, _DropoutNd) and module.p > 0
    return module.training and (dropping or isinstance(module, _BatchNorm))


__all__ = ["Outcome", "Updater"]
