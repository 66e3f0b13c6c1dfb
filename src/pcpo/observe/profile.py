"""One training iteration under torch's profiler: where its time goes, and a trace for chrome://tracing or Perfetto."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pcpo.data.files import atomic_path

if TYPE_CHECKING:
    from pcpo.trainer.loop import PCPOTrainer

ROW_LIMIT = 12


@dataclass
class Clock:
    """Seconds and calls by label. Labels nest: seconds of an inner one are in the outer one too, `open` holds both."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def label(self, name: str) -> Iterator[None]:
        """Time a block under a name, the work that it queues on an accelerator included."""
        began = self._now()
        self.open.append(name)
        with record_function(name):
            yield
        self.open.pop()
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - began
        self.calls[name] = self.calls.get(name, 0) + 1

    def wrap(self, name: Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` under a label that is asked for at every call."""

        def labelled(*args: Any, **kwargs: Any) -> Any:
            with self.label(name()):
                return function(*args, **kwargs)

        return labelled

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class Profile:
    """Where one iteration went.

    rows        (part, calls, seconds, share of the iteration), the parts of a part below it, indented
    operators   (operator, calls, seconds by itself), the most expensive first
    """

    seconds: float
    rows: list[tuple[str, int, float, float]]
    operators: list[tuple[str, int, float]]
    trace: Path


def profile_iteration(trainer: PCPOTrainer, output: Path, warm_up: int = 1) -> Profile:
    """Profile one iteration after `warm_up` others, and write its Chrome trace to `output`.

    The trainer's weights change as by so many iterations; nothing is evaluated and no checkpoint written.
    """
    from pcpo.observe.events import NoEvents

    events = NoEvents()
    for _ in range(warm_up):
        trainer.learner.run(events)
    clock = Clock(trainer.adapter.device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with _labels(trainer, clock), profile(activities=activities) as recorded, clock.label("iteration"):
        trainer.learner.run(events)
    with atomic_path(output) as temporary:
        recorded.export_chrome_trace(str(temporary))
    return Profile(clock.seconds["iteration"], _rows(clock), _operators(recorded), output)


@contextlib.contextmanager
def _labels(trainer: PCPOTrainer, clock: Clock) -> Iterator[None]:
    """Inside, model calls, decoding, reward, backward passes and optimiser steps are under their labels."""
    adapter, learner = trainer.adapter, trainer.learner
    wrapped: list[tuple[Any, str, Callable[[], str]]] = [
        (adapter, "call", lambda: "model call in the update" if "update" in clock.open else "model call"),
        (adapter, "decode", lambda: "decode"),
        (adapter, "encode", lambda: "encode prompts"),
        (learner, "reward", lambda: "reward"),
        (learner.updater, "run", lambda: "update"),
        (trainer.state, "step", lambda: "optimiser step"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, label in wrapped:
            before = owner.__dict__.get(name)
            setattr(owner, name, clock.wrap(label, getattr(owner, name)))
            stack.callback(_put_back, owner, name, before)
        yield


def _put_back(owner: Any, name: str, before: Any) -> None:
    """Undo setattr on an object: what it held itself, or nothing, so that its class answers again."""
    if before is None:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


def _rows(clock: Clock) -> list[tuple[str, int, float, float]]:
    total = clock.seconds["iteration"]

    def row(title: str, label: str) -> tuple[str, int, float]:
        return title, clock.calls.get(label, 0), clock.seconds.get(label, 0.0)

    inner = [row("  model calls", "model call in the update"), row("  optimiser steps", "optimiser step")]
    update = row("update", "update")
    outer = [
        row("encoding of prompts", "encode prompts"),
        row("model calls of the rollout", "model call"),
        row("decoding", "decode"),
        row("reward", "reward"),
        update,
    ]
    table = [
        *outer,
        *inner,
        ("  backward, loss, metrics", 0, update[2] - sum(seconds for *_, seconds in inner)),
        ("noise, sampler, advantages, events", 0, total - sum(seconds for *_, seconds in outer)),
        ("iteration", 1, total),
    ]
    return [(title, count, seconds, seconds / total) for title, count, seconds in table]


def _operators(recorded: profile) -> list[tuple[str, int, float]]:
    """Operators by the time that they took themselves, on the accelerator where there is one."""
    averages = [event for event in recorded.key_averages() if event.key.startswith("aten::")]
    own = [(e.key, e.count, max(e.self_cpu_time_total, e.self_device_time_total) / 1e6) for e in averages]
    return sorted(own, key=lambda row: -row[2])[:ROW_LIMIT]


__all__ = ["Profile", "profile_iteration"]
