"""`pcpo plan`: put counts, memory, time and advice together, and print them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from pcpo.models.device import find_device
from pcpo.models.folders import read_header
from pcpo.models.loading import adapter_class
from pcpo.plan.advice import MARGIN, Advice, advise, fits
from pcpo.plan.counts import Counts
from pcpo.plan.memory import GIB, MemoryPlan, estimate, model_of, planned_device
from pcpo.plan.probe import Measured, probe
from pcpo.trainer.config import Config
from pcpo.trainer.inputs import prompt_sets
from pcpo.trainer.parts import check_family


@dataclass(frozen=True)
class Plan:
    """All that `pcpo plan` says. limit: bytes of the device; None where they are not known."""

    config: Config
    counts: Counts
    memory: MemoryPlan
    measured: Measured | None
    limit: int | None
    advice: list[Advice]

    @property
    def fits(self) -> bool | None:
        """Whether the peak leaves a margin; None where the device's memory is not known."""
        return None if self.limit is None else fits(self.memory, self.limit)


def make_plan(config: Config, *, memory: float | None = None, run_probe: bool = True) -> Plan:
    """Plan a run. memory: GiB of the device; None: those of this machine's. run_probe: load the model and call it.

    Without a probe only configuration files are read. Raises what `pcpo validate` raises, and ConfigError where a
    probe is asked for on a device that is not there.
    """
    prompts, shown = prompt_sets(config)
    check_family(config, adapter_class(read_header(config.model.path)).kind)
    total = len({prompt.text for prompt in [*prompts, *shown[: config.evaluation.num_prompts]]})
    limit = int(memory * GIB) if memory is not None else _memory_of(planned_device(config))
    model = model_of(config, len(shown))
    plan = estimate(model, total)
    measured = None
    # where the simulation says that the model is far too large, loading it would only bring the machine down
    if run_probe and (limit is None or plan.peak < 2 * limit):
        measured = probe(config, model.counts, prompts, find_device(config.run.device))
        plan = estimate(model, total, measured.activations, measured.process)
    advice = advise(config, total, limit) if limit is not None and not fits(plan, limit) else []
    return Plan(config, model.counts, plan, measured, limit, advice)


def _memory_of(device: str) -> int | None:
    if device == "cpu":
        return int(psutil.virtual_memory().total)
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return None


def show(plan: Plan, echo: Callable[[str], None]) -> None:
    """Print a plan."""
    counts, memory, config = plan.counts, plan.memory, plan.config
    echo(f"{config.name}: {config.model.path}, {config.model.tune}, {config.run.precision}, on {memory.device}\n")
    echo("work                             iteration          run")
    run = counts.iterations
    rows = [
        ("pictures sampled and scored", counts.pictures, counts.run_pictures),
        ("model calls, sampling", counts.rollout_calls, run * counts.rollout_calls),
        ("model calls, training", counts.update_calls, run * counts.update_calls),
        ("model calls, reference", counts.reference_calls, run * counts.reference_calls),
        ("model calls, evaluation", "", counts.measuring_calls),
        ("optimiser steps", counts.optimiser_steps, run * counts.optimiser_steps),
    ]
    for name, one, all_ in rows:
        if all_:
            echo(f"  {name:28s} {one if one == '' else f'{one:,}':>11} {all_:>12,}")
    echo(f"\nmemory, {'measured' if plan.measured and plan.measured.activations else 'estimated'}")
    for name, size in memory.resident.items():
        echo(f"  {name:40s} {_size(size):>11}")
    echo("and at its peak")
    for phase in sorted(memory.phases, key=memory.total, reverse=True):
        parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.phases[phase].items() if size > 0)
        echo(f"  {phase:28s} {_size(memory.total(phase)):>23}  {parts}")
    for name, size in memory.host.items():
        echo(f"  {f'beside the device: {name}':40s} {_size(size):>11}")
    for name in memory.unknown:
        echo(f"  not counted, its files are not here: reward {name}")
    if plan.measured is not None:
        _show_time(plan, plan.measured, echo)
    _show_verdict(plan, echo)


def _show_time(plan: Plan, measured: Measured, echo: Callable[[str], None]) -> None:
    seconds = measured.iteration(plan.counts)
    total = sum(seconds.values())
    parts = ", ".join(f"{name} {_time(value)}" for name, value in seconds.items())
    echo(f"\ntime without the reward: {_time(total)} an iteration ({parts})")
    echo(f"  {_time(total * plan.counts.iterations)} for {plan.counts.iterations} iterations, without evaluations")


def _show_verdict(plan: Plan, echo: Callable[[str], None]) -> None:
    memory = plan.memory
    peak = f"peak {_size(memory.peak)}, in phase: {memory.peak_phase}"
    if plan.limit is None:
        echo(f"\n{peak}; give --memory GiB to see whether it fits")
        return
    if plan.fits:
        echo(f"\n{peak}: fits in {_size(plan.limit)}")
        return
    echo(f"\n{peak}: does not fit in {_size(plan.limit)} with {MARGIN:.0%} to spare")
    for advice in plan.advice:
        echo(f"  --set {advice.setting:36s} saves {_size(advice.saves)}, peak {_size(advice.peak)}; {advice.cost}")
    if not plan.advice or plan.advice[-1].peak > (1 - MARGIN) * plan.limit:
        echo("  nothing that pcpo can change makes it fit: use a larger device or a smaller model")


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / (1 << 20):.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


__all__ = ["Plan", "make_plan", "show"]
