"""From a log to what the charts draw: thinned series, per-step shares, clip fractions on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pcpo.observe.records import Iteration, RunLog


@dataclass(frozen=True)
class Sample:
    """One drawn point: the mean of `value` (and `spread`) over iterations first..last."""

    first: int
    last: int
    value: float
    spread: float | None = None

    @property
    def x(self) -> float:
        """Middle of its iterations."""
        return (self.first + self.last) / 2

    @property
    def label(self) -> str:
        """The iterations in words."""
        same = self.first == self.last
        return f"iteration {self.first}" if same else f"mean of iterations {self.first} to {self.last}"


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the numbers that are there; None when there is none."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def chunks(rows: Sequence[Iteration], limit: int) -> list[Sequence[Iteration]]:
    """Consecutive runs of rows, at most `limit` of them, of equal length but for the last."""
    size = max(1, math.ceil(len(rows) / limit))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def series(
    rows: Sequence[Iteration],
    value: Callable[[Iteration], float | None],
    spread: Callable[[Iteration], float | None] | None = None,
    limit: int = 300,
) -> list[Sample]:
    """A quantity over the iterations, averaged in chunks beyond `limit`; missing numbers are left out."""
    samples = []
    for chunk in chunks(rows, limit):
        middle = mean([value(row) for row in chunk])
        if middle is not None:
            width = mean([spread(row) for row in chunk]) if spread else None
            samples.append(Sample(chunk[0].iteration, chunk[-1].iteration, middle, width))
    return samples


@dataclass(frozen=True)
class StepShares:
    """Shares of the total credit, each list [S] and of sum 1; empty where the log has none.

    low and high bound the measured share over the measurements.
    """

    steps: list[int]
    native: list[float]
    target: list[float]
    measured: list[float]
    low: list[float]
    high: list[float]
    measurements: int


def shares(values: Sequence[float | None]) -> list[float]:
    """Non-negative values over their sum; empty when a value is missing or negative, or the sum is 0."""
    present = [value for value in values if value is not None and value >= 0]
    total = math.fsum(present)
    return [value / total for value in present] if len(present) == len(values) and total > 0 else []


def step_shares(log: RunLog) -> StepShares | None:
    """Native, target and measured credit per step; measured is the mean over the measurements.

    Where the target changes during the run: the last target and the last measurement.
    """
    measured = [event for event in log.gradient_share if shares(event.share)]
    if log.credit is not None and log.credit.steps:
        steps, native, target = log.credit.steps, log.credit.native, log.credit.target
    elif measured:
        steps, native, target = measured[-1].steps, measured[-1].native_share, measured[-1].target_share
    else:
        return None
    if measured and not any(event.steps == steps for event in measured):
        # A run that trains other steps each time: shares can be compared only among steps measured together.
        together = measured[-1].steps
        native, target = _at_steps(steps, native, together), _at_steps(steps, target, together)
        steps = together
    rows = [shares(event.share) for event in measured if event.steps == steps]
    if len({tuple(event.target) for event in log.credits}) > 1:
        rows = rows[-1:]  # the earlier ones were measured under other targets
    columns = list(zip(*rows, strict=True))
    return StepShares(
        steps=list(steps),
        native=shares(native),
        target=shares(target),
        measured=[math.fsum(column) / len(column) for column in columns],
        low=[min(column) for column in columns],
        high=[max(column) for column in columns],
        measurements=len(rows),
    )


def _at_steps(steps: list[int], values: list[float | None], wanted: list[int]) -> list[float | None]:
    """The values of the wanted steps; None where a step has none."""
    of_step = dict(zip(steps, values, strict=False))
    return [of_step.get(step) for step in wanted]


def spread(values: Sequence[float]) -> float | None:
    """Largest over smallest; None when there is nothing or the smallest is 0."""
    return max(values) / min(values) if values and min(values) > 0 else None


def distance(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Total variation distance of two shares, 0..1: the part of the credit that sits at other steps."""
    if not left or len(left) != len(right):
        return None
    return 0.5 * math.fsum(abs(a - b) for a, b in zip(left, right, strict=True))


@dataclass(frozen=True)
class Cell:
    """The value of one step in one column of iterations."""

    column: int
    row: int
    value: float
    label: str


@dataclass(frozen=True)
class StepGrid:
    """A quantity on steps x columns of iterations. A cell is there only where the quantity is."""

    steps: list[int]
    columns: list[tuple[int, int]]
    cells: list[Cell]


def clip_grid(log: RunLog, limit: int) -> StepGrid | None:
    """Clip fraction per step and iteration, with iterations averaged into at most `limit` columns."""
    rows = [row for row in log.iterations if row.clip_fraction_per_step]
    trained = {step for row in rows for step in row.steps}
    steps = sorted(trained | set(log.credit.steps if log.credit else ()))
    if not trained:
        return None
    cells, columns = [], []
    for column, chunk in enumerate(chunks(rows, limit)):
        first, last = chunk[0].iteration, chunk[-1].iteration
        columns.append((first, last))
        when = f"iteration {first}" if first == last else f"iterations {first} to {last}"
        for position, step in enumerate(steps):
            value = mean([_of_step(row, step) for row in chunk])
            if value is not None:
                cells.append(Cell(column, position, value, f"step {step}, {when}"))
    return StepGrid(steps, columns, cells) if cells else None


def credit_grid(log: RunLog, limit: int) -> StepGrid | None:
    """Share of the credit per step after each measurement of an adaptive schedule; None if it never changed."""
    schedules = [(event, shares(event.target)) for event in log.credits]
    schedules = [(event, found) for event, found in schedules if found and event.steps == log.credits[-1].steps]
    if len({tuple(found) for _, found in schedules}) < 2:
        return None
    stride = math.ceil(len(schedules) / limit)
    schedules = schedules[::-stride][::-1]  # the last one is always there
    cells = [
        Cell(column, row, value, f"step {step}, after iteration {event.iteration}")
        for column, (event, found) in enumerate(schedules)
        for row, (step, value) in enumerate(zip(event.steps, found, strict=True))
    ]
    columns = [(event.iteration, event.iteration) for event, _ in schedules]
    return StepGrid(schedules[-1][0].steps, columns, cells)


def _of_step(row: Iteration, step: int) -> float | None:
    return row.clip_fraction_per_step[row.steps.index(step)] if step in row.steps else None
