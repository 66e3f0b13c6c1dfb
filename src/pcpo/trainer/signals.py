"""SIGINT and SIGTERM: stop at the next safe place, so that the last finished iteration can be saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor

from pcpo.errors import Interrupted
from pcpo.types import Reward, RewardResult

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Inside, the first SIGINT or SIGTERM asks to stop, and the second ends the process at once.

    `check` raises Interrupted once a stop was asked for; it is called where the state of a run is in order: between
    sampler steps, micro-batches and iterations, never while weights change. A reward (see `stoppable`) is broken off at
    once, since it may wait for another machine.

    Only the main thread can take signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._break_off = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def stoppable(self, reward: Reward) -> Reward:
        """The same reward, broken off by a signal."""

        def call(
            images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
        ) -> RewardResult | Tensor | Sequence[float]:
            self.check()
            self._break_off = True
            try:
                return reward(images, prompts, metadata)
            finally:
                self._break_off = False

        return call

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        text = f"\npcpo: {self.received.name}: stopping; the last finished iteration is saved; once more ends at once\n"
        with suppress(OSError):  # not through print: a handler may interrupt one
            os.write(2, text.encode("ascii"))
        if self._break_off:
            self._break_off = False
            raise Interrupted(self.received)
