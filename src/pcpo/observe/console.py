"""What the terminal shows while a run goes: progress bars with the time left, and one line per iteration.

Where stdout is not a terminal (a CI log, a file) there are no bars, only the lines.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pcpo.observe.numbers import number, percent, relative_change

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Console:
    """Shows a run. Quiet: only warnings. Use it as a context manager; `file` is stdout unless given.

    `on_progress` is called whenever a task advances, before it does; it may raise to stop the work.
    """

    def __init__(
        self,
        quiet: bool = False,
        total_iterations: int = 0,
        *,
        file: TextIO | None = None,
    ) -> None:
        self.quiet = quiet
        self.on_progress: Callable[[], object] = lambda: None
        self.total_iterations = total_iterations
        self._file = file or sys.stdout
        bars = not quiet and self._file.isatty()
        self._terminal = Terminal(file=self._file, force_terminal=bars, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=self._terminal,
            # Iterations may take minutes; with the usual 30 s there would never be two of them to measure.
            speed_estimate_period=3600,
            disable=not bars,
            transient=True,
        )
        self._overall = self._progress.add_task("iterations", total=total_iterations, visible=total_iterations > 0)

    def __enter__(self) -> Console:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[..., None]]:
        """Show a bar named `name` for a part of the iteration; yields `advance(n)`."""
        task = self._progress.add_task(self._clean(name), total=total)
        try:

            def advance(done: int = 1) -> None:
                self.on_progress()
                self._progress.advance(task, done)

            yield advance
        finally:
            self._progress.remove_task(task)

    def header(self, fields: Mapping[str, Any]) -> None:
        """Name what is about to run: model, algorithm, reward, output folder, one line each."""
        width = max((len(name) for name in fields), default=0)
        for name, value in fields.items():
            self._say(f"{name:<{width}}  {value}", style="bold" if name == "model" else "")

    def iteration(self, event: Mapping[str, Any]) -> None:
        """Print one line for an iteration event and advance the overall bar to it."""
        self._progress.update(self._overall, completed=event["iteration"])
        self._say(iteration_line(event, self.total_iterations))

    def evaluation(self, event: Mapping[str, Any]) -> None:
        """Print one line for an evaluation event."""
        spread = f" +- {number(event.get('reward_std'))}" if event.get("reward_std") is not None else ""
        parts = event.get("rewards") or {}
        named = ", ".join(f"{name} {number(value)}" for name, value in parts.items()) if len(parts) > 1 else ""
        line = f"evaluation at {event['iteration']}: reward {number(event.get('reward_mean'))}{spread}"
        held = ", ".join(f"{name} {number(value)}" for name, value in (event.get("held_out") or {}).items())
        self._say(line + (f" ({named})" if named else "") + (f"; held out: {held}" if held else ""), style="cyan")

    def warn(self, message: str) -> None:
        """Print a warning; also when quiet."""
        self._terminal.print(Text(self._clean(f"warning: {message}"), style="yellow"), soft_wrap=True)

    def summary(
        self,
        *,
        reward_before: float | None = None,
        reward_after: float | None = None,
        iterations: int | None = None,
        seconds: float | None = None,
        output: object = None,
        report: object = None,
    ) -> None:
        """Close with the reward before and after, the time taken and where things are; all optional."""
        if reward_before is not None and reward_after is not None:
            change = relative_change(reward_before, reward_after)
            gain = f" ({percent(change, signed=True)})" if change is not None else ""
            self._say(f"reward  {number(reward_before)} -> {number(reward_after)}{gain}", style="bold green")
        if iterations is not None:
            took = f" in {duration(seconds)}" if seconds is not None else ""
            self._say(f"done    {iterations} iterations{took}")
        if output is not None:
            self._say(f"output  {output}")
        if report is not None:
            self._say(f"report  {report}")

    def _say(self, line: str, style: str = "") -> None:
        if not self.quiet:
            self._terminal.print(Text(self._clean(line), style=style), soft_wrap=True)

    def _clean(self, text: str) -> str:
        """Keep prompts and paths from moving the cursor, and to what the terminal can encode."""
        encoding = self._file.encoding or "utf-8"
        return UNPRINTABLE.sub("?", text).encode(encoding, "replace").decode(encoding)


def iteration_line(event: Mapping[str, Any], total: int = 0) -> str:
    """One iteration as one line; missing numbers are n/a; invalid and skipped show where there are any."""
    width = len(str(total))
    count = f"{event['iteration']:>{width}}/{total}" if total else f"{event['iteration']}"
    reward = f"{number(event.get('reward_mean')):>7} +- {number(event.get('reward_std'), 3):<6}"
    parts = [
        f"iter {count}",
        f"reward {reward}",
        f"clip {percent(event.get('clip_fraction')):>6}",
        f"kl {number(event.get('approx_kl'), 2):>7}",
        f"ratio err {number(event.get('ratio_error'), 2):>7}",
        f"grad {number(event.get('grad_norm'), 3):>6}",
        f"zero-std {event.get('zero_std_groups', 0)}",
        f"{number(event.get('pictures_per_second'), 3):>5} pictures/s",
    ]
    if event.get("invalid"):
        parts.append(f"invalid {event['invalid']}")
    if event.get("skipped"):
        parts.append(f"skipped {event['skipped']}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in words: 8.1 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
