"""The report's charts: each function returns one drawing of the asked width, or None with nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pcpo.observe.markup import Safe, element
from pcpo.observe.numbers import number, percent
from pcpo.observe.records import RunLog
from pcpo.observe.series import Sample, StepGrid, StepShares, clip_grid, credit_grid, series
from pcpo.observe.svg import Frame, Point, Scale, fit, iterations_scale, path, text, titled

LEVELS = 10
ITERATION = "iteration"


def reward_curve(log: RunLog, width: int) -> Safe | None:
    """Training reward with a band of one standard deviation, and the evaluations, over the iterations."""
    training = series(log.iterations, lambda row: row.reward_mean, lambda row: row.reward_std)
    evaluated = [(event.iteration, event.reward_mean) for event in log.evaluations if event.reward_mean is not None]
    if not training and not evaluated:
        return None
    frame = Frame(width, 360 if width > 600 else 270, right=20)
    low = [sample.value - (sample.spread or 0) for sample in training]
    high = [sample.value + (sample.spread or 0) for sample in training]
    xs = [sample.x for sample in training] + [float(iteration) for iteration, _ in evaluated]
    x = iterations_scale(xs, *frame.x_range)
    y = fit([*low, *high, *(value for _, value in evaluated)], *frame.y_range)
    upper: list[Point] = [(x(sample.x), y(value)) for sample, value in zip(training, high, strict=True)]
    lower: list[Point] = [(x(sample.x), y(value)) for sample, value in zip(training, low, strict=True)]
    return frame.draw(
        "reward-curve",
        _reward_summary(training, evaluated),
        frame.y_axis(y, "reward"),
        frame.x_axis(x, ITERATION, 10 if width > 600 else 5),
        path([*upper, *reversed(lower)], "band", closed=True) if len(training) > 1 else None,
        path([(x(sample.x), y(sample.value)) for sample in training], "line training") if training else None,
        [_dot(x, y, sample, "dot training", _radius(len(training))) for sample in training],
        path([(x(at), y(value)) for at, value in evaluated], "line evaluation") if len(evaluated) > 1 else None,
        [_evaluation_mark(x(at), y(value), at, value) for at, value in evaluated],
        _end_labels(frame, x, y, evaluated),
    )


def _reward_summary(training: Sequence[Sample], evaluated: Sequence[tuple[int, float]]) -> str:
    said = "Reward over iterations."
    if training:
        said += f" Training mean from {number(training[0].value)} to {number(training[-1].value)}."
    if evaluated:
        said += f" Evaluation from {number(evaluated[0][1])} to {number(evaluated[-1][1])}."
    return said


def _radius(points: int) -> float:
    """Dots small enough not to hide the line, and a lone one large enough to be seen."""
    return 5.0 if points == 1 else 3.0 if points <= 40 else 2.0


def _dot(x: Scale, y: Scale, sample: Sample, class_: str, radius: float) -> Safe:
    spread = f" \u00b1 {number(sample.spread, 3)}" if sample.spread is not None else ""
    tooltip = f"{sample.label}: {number(sample.value)}{spread}"
    return titled("circle", tooltip, cx=x(sample.x), cy=y(sample.value), r=radius, class_=class_)


def _evaluation_mark(x: float, y: float, iteration: int, value: float) -> Safe:
    """A diamond, so that evaluations differ from training points in shape as well as in colour."""
    tooltip = f"evaluation at iteration {iteration}: {number(value)}"
    return titled("path", tooltip, d=f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6Z", class_="mark evaluation")


def _end_labels(frame: Frame, x: Scale, y: Scale, evaluated: Sequence[tuple[int, float]]) -> list[Safe]:
    """The first and the last evaluation in figures, beside their marks and within the frame."""
    rising = len(evaluated) > 1 and evaluated[1][1] > evaluated[0][1]
    ends = [(*pair, "start", 9, not rising) for pair in evaluated[:1]]
    ends += [(*pair, "end", -9, True) for pair in evaluated[1:][-1:]]
    labels = []
    for at, value, anchor, shift, above in ends:
        height = y(value) - 12 if above else y(value) + 22
        if not frame.top + 10 < height < frame.height - frame.bottom - 4:
            height = 2 * y(value) + 10 - height
        labels.append(text(x(at) + shift, height, number(value), "value evaluation", anchor))
    return labels


def credit_bars(shares: StepShares, width: int, highest: float = 0.0) -> Safe | None:
    """Three bars a step, each a share of the credit: native, target, measured in the gradient.

    The axis reaches `highest` at least: drawings side by side then have one scale.
    """
    kinds = [("native", shares.native), ("target", shares.target), ("measured", shares.measured)]
    kinds = [(kind, values) for kind, values in kinds if values]
    if not kinds:
        return None
    frame = Frame(width, 340 if width > 600 else 270)
    left, right = frame.x_range
    slot = (right - left) / len(shares.steps)
    bar = slot * 0.82 / len(kinds)
    y = fit([highest, *(v for _, values in kinds for v in (*values, *shares.high))], *frame.y_range, zero=True)
    bars: list[Safe | None] = []
    for position, step in enumerate(shares.steps):
        start = left + slot * (position + 0.09)
        for offset, (kind, values) in enumerate(kinds):
            at, value = start + offset * bar, values[position]
            bars.append(_bar(at, bar, y, value, kind, f"step {step}, {_KINDS[kind]}: {percent(value)} of the credit"))
        if shares.measurements > 1 and shares.measured:
            middle = start + (len(kinds) - 0.5) * bar
            ends = [(middle, y(shares.low[position])), (middle, y(shares.high[position]))]
            bars.append(path(ends, "whisker"))
    return frame.draw(
        "credit-bars",
        "Share of the credit per sampling step: "
        + "; ".join(f"{_KINDS[kind]} from {percent(min(values))} to {percent(max(values))}" for kind, values in kinds),
        frame.y_axis(y, "share of the credit", shares=True),
        bars,
        _step_axis(frame, shares.steps, slot),
    )


_KINDS = {"native": "native weight", "target": "target", "measured": "measured gradient"}


def _bar(x: float, width: float, y: Scale, value: float, kind: str, tooltip: str) -> Safe:
    top, gap = y(value), min(1.0, width * 0.12)
    return titled("rect", tooltip, x=x, y=top, width=width - gap, height=max(y.start - top, 0.5), class_=f"bar {kind}")


def _step_axis(frame: Frame, steps: Sequence[int], slot: float) -> list[Safe]:
    """Step numbers below the bars, thinned so that they do not touch."""
    base = frame.height - frame.bottom
    stride = max(1, math.ceil(26 / slot))
    middle = (frame.left + frame.width - frame.right) / 2
    return [
        element("line", x1=frame.left, x2=frame.width - frame.right, y1=base, y2=base, class_="base"),
        *(
            text(frame.left + slot * (position + 0.5), base + 17, str(step))
            for position, step in enumerate(steps)
            if position % stride == 0
        ),
        text(middle, frame.height - 6, "sampling step (noise \u2192 picture)", "axis"),
    ]


def clip_heatmap(log: RunLog, width: int) -> Safe | None:
    """Clip fraction per step (upwards) and iteration; hatched where a step was not trained."""
    grid = clip_grid(log, limit=160 if width > 600 else 60)
    return _heatmap(grid, width, "Clip fraction", "of the pictures clipped", "none clipped") if grid else None


def credit_heatmap(log: RunLog, width: int) -> Safe | None:
    """Share of the credit per step (upwards) and iteration, of a schedule that is measured."""
    grid = credit_grid(log, limit=160 if width > 600 else 60)
    return _heatmap(grid, width, "Share of the credit", "of the credit", "") if grid else None


def _heatmap(grid: StepGrid, width: int, quantity: str, of_what: str, if_none: str) -> Safe:
    rows, columns = len(grid.steps), len(grid.columns)
    frame = Frame(width, 90 + min(max(24 * rows, 120), 430), top=46)
    (left, right), (bottom, top) = frame.x_range, frame.y_range
    across, down = (right - left) / columns, (bottom - top) / rows
    highest = max(cell.value for cell in grid.cells)
    kind = "clip-heatmap" if of_what.endswith("clipped") else "credit-heatmap"
    hatch = f"hatch-{kind}-{width}"
    gap = min(1.0, across * 0.12, down * 0.12)
    cells = [
        titled(
            "rect",
            f"{cell.label}: {percent(cell.value)} {of_what}",
            x=left + cell.column * across,
            y=bottom - (cell.row + 1) * down,
            width=across - gap,
            height=down - gap,
            class_=f"cell q{level(cell.value, highest)}",
        )
        for cell in grid.cells
    ]
    return frame.draw(
        kind,
        f"{quantity} for {rows} sampling steps "
        f"over iterations {grid.columns[0][0]} to {grid.columns[-1][1]}, "
        f"from {percent(min(cell.value for cell in grid.cells))} to {percent(highest)}.",
        _hatch(hatch),
        element("rect", x=left, y=top, width=right - left, height=bottom - top, fill=f"url(#{hatch})"),
        cells,
        _heatmap_axes(frame, grid.steps, grid.columns, across, down),
        _colour_scale(frame, percent(highest) if highest > 0 else if_none, of_what),
    )


def level(value: float, highest: float) -> int:
    """Colour class 0..LEVELS-1 of a value between 0 and the highest one."""
    return min(LEVELS - 1, int(LEVELS * max(value, 0.0) / highest)) if highest > 0 else 0


def _hatch(name: str) -> Safe:
    line = element("path", d="M-1 7L7 -1", class_="hatch-line")
    square = element("rect", width=6, height=6, class_="hatch-ground")
    return element("defs", element("pattern", square, line, id=name, width=6, height=6, patternUnits="userSpaceOnUse"))


def _heatmap_axes(
    frame: Frame, steps: Sequence[int], columns: Sequence[tuple[int, int]], across: float, down: float
) -> list[Safe]:
    bottom, top = frame.y_range
    row_stride = max(1, math.ceil(15 / down))
    column_stride = max(1, math.ceil(44 / across))
    return [
        *(
            text(frame.left - 7, bottom - (row + 0.5) * down + 4, str(step), anchor="end")
            for row, step in enumerate(steps)
            if row % row_stride == 0
        ),
        *(
            text(frame.left + (column + 0.5) * across, bottom + 17, str(first))
            for column, (first, _) in enumerate(columns)
            if column % column_stride == 0
        ),
        text(13, (top + bottom) / 2, "sampling step", "axis", turn=True),
        text((frame.left + frame.width - frame.right) / 2, frame.height - 6, ITERATION, "axis"),
    ]


def _colour_scale(frame: Frame, highest: str, of_what: str) -> list[Safe]:
    """The colours with the values at their ends, above the map, and the sign for an untrained step."""
    swatch = 15.0
    end = frame.left + LEVELS * swatch
    return [
        *(
            element("rect", x=frame.left + index * swatch, y=8, width=swatch, height=12, class_=f"q{index}")
            for index in range(LEVELS)
        ),
        text(frame.left, 35, "0", anchor="start"),
        text(end, 35, highest, anchor="end"),
        text(end + 8, 18, of_what, anchor="start"),
    ]


def small_chart(samples: Sequence[Sample], label: str, *, log: bool = False, shares: bool = False) -> Safe | None:
    """One quantity over the iterations; on a log axis, zeros sit on the base line."""
    if not samples:
        return None
    frame = Frame(360, 190, left=64, right=12, top=12)
    x = iterations_scale([sample.x for sample in samples], *frame.x_range)
    values = [sample.value for sample in samples]
    positive = [value for value in values if value > 0]
    if log and positive:
        lo, hi = 10.0 ** math.floor(math.log10(min(positive))), 10.0 ** math.ceil(math.log10(max(positive)))
        # The decade below the smallest value is where zeros go.
        floored = len(positive) < len(values)
        lo, hi = max(lo / 10 if floored else lo, 1e-300), max(hi, 10 * lo)
        y = Scale(lo, hi, *frame.y_range, log=True, floored=floored)
    else:
        y = fit(values, *frame.y_range, zero=min(values) >= 0)
    return frame.draw(
        "small-chart",
        f"{label} over iterations: first {number(values[0])}, last {number(values[-1])}, "
        f"largest {number(max(values))}.",
        frame.y_axis(y, label, 4, shares=shares),
        frame.x_axis(x, ITERATION, 5),
        path([(x(sample.x), y(sample.value)) for sample in samples], "line training"),
        [_dot(x, y, sample, "dot training", _radius(len(samples))) for sample in samples],
    )
