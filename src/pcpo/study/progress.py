"""What the terminal shows while a study goes: one line per cell, and a bar over the cells with the time left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import progress as bars
from rich.console import Console as Terminal
from rich.text import Text

from pcpo.observe.console import Console, duration
from pcpo.observe.numbers import number, percent, relative_change
from pcpo.study.claims import Claim
from pcpo.study.plan import Cell, Study
from pcpo.study.results import read_results

TAIL = 1 << 24  # bytes at a log's end that hold its newest iteration


class Progress:
    """Shows a study; the bar counts iterations over all cells, so it moves within a cell too. Quiet: failures only."""

    def __init__(self, cells: Sequence[Cell], quiet: bool = False) -> None:
        self.quiet = quiet
        self._cells = cells
        self._terminal = Terminal(file=sys.stdout, highlight=False)
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=32),
            bars.TaskProgressColumn(),
            bars.TextColumn("time left"),
            bars.TimeRemainingColumn(),
            console=self._terminal,
            speed_estimate_period=24 * 3600,
            disable=quiet or not sys.stdout.isatty(),
            transient=True,
        )
        total = sum(cell.config.train.iterations for cell in cells)
        self._task = self._bar.add_task("study", total=total, completed=self._iterations())

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def plan(self, study: Study, cells: Sequence[Cell], reused: int = 0) -> None:
        """Say what will be run, and in what the arms of each model differ; `reused` cells were just taken over."""
        taken = f", {reused} of them taken over" if reused else ""
        self._say(f"study  {study.name}: {len(cells)} cells, {self._done()} done{taken}", "bold")
        shown = set()
        for cell in cells:
            if (cell.model, cell.arm) in shown:
                continue
            shown.add((cell.model, cell.arm))
            changes = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in cell.difference.items())
            same = "baseline" if cell.arm == study.baseline_of(cell.model) else "the same settings as the baseline"
            self._say(f"       {cell.model}  {cell.arm}: {changes or same}")

    def follow(self, cell: Cell, claim: Claim) -> Console:
        """The console of a cell's run: moves the bar, and ends the run when the claim is lost."""
        self._bar.update(self._task, description=cell.name, completed=self._iterations())
        return _CellConsole(claim, lambda: self._bar.advance(self._task))

    def finished(self, cell: Cell, results: dict[str, Any]) -> None:
        """Print a finished cell's line."""
        first, last = (results["evaluations"][n]["reward_mean"] for n in (0, -1))
        change = relative_change(first, last)
        gain = f" ({percent(change, signed=True)})" if change is not None else ""
        took = duration(results["seconds"])
        self._say(f"{self._count()} {cell.name}: reward {number(first)} -> {number(last)}{gain}, trained {took}")

    def failed(self, cell: Cell, error: Exception) -> None:
        """Print a failed cell's line; also when quiet."""
        line = f"failed: {cell.name}: {type(error).__name__}: {' '.join(str(error).split())}"
        self._terminal.print(Text(line, style="red"), soft_wrap=True)

    def lost(self, cell: Cell) -> None:
        """Print that another runner has taken over the cell that this one was running."""
        self._say(f"another runner took over {cell.name}, this one leaves it", "yellow")

    def end(self, finished: Sequence[str], failed: Sequence[str], elsewhere: Sequence[str]) -> None:
        """Print what this runner did, and what others are still at."""
        parts = [f"{len(finished)} finished", f"{len(failed)} failed", f"{len(elsewhere)} with other runners"]
        self._say(f"done   {', '.join(parts)}; {self._done()} of {len(self._cells)} cells are done", "bold green")

    def _done(self) -> int:
        return sum(read_results(cell) is not None for cell in self._cells)

    def _count(self) -> str:
        return f"{self._done()}/{len(self._cells)}"

    def _iterations(self) -> int:
        return sum(iterations_logged(cell) for cell in self._cells)

    def _say(self, line: str, style: str = "") -> None:
        if not self.quiet:
            self._terminal.print(Text(line, style=style), soft_wrap=True)


class _CellConsole(Console):
    """A quiet console that counts iterations and looks at the claim between steps."""

    def __init__(self, claim: Claim, advance: Callable[[], None]) -> None:
        super().__init__(quiet=True)
        self._claim, self._advance = claim, advance

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[..., None]]:
        """As the console's, with a look at the claim at every step."""
        with super().task(name, total) as advance:

            def checked(done: int = 1) -> None:
                self._claim.check()
                advance(done)

            yield checked

    def iteration(self, event: Mapping[str, Any]) -> None:
        """Count one iteration."""
        super().iteration(event)
        self._advance()


def iterations_logged(cell: Cell) -> int:
    """Iterations that a cell has done, from its newest log lines; 0 before the first, all where results came alone."""
    path = cell.folder / "events.jsonl"
    if not path.is_file():
        return 0 if read_results(cell) is None else cell.config.train.iterations
    for line in reversed(_tail(path).splitlines()):
        if line.startswith(b'{"type": "iteration", "iteration": '):
            count = line.split(b": ", 3)[2].split(b",")[0]
            return min(int(count), cell.config.train.iterations) if count.isdigit() and len(count) < 10 else 0
    return 0


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        return file.read(TAIL)
