"""Curves of several groups in one drawing: means over seeds with their bands."""

from __future__ import annotations

from collections.abc import Sequence

from pcpo.observe.groups import Curve, Group, Mean, means
from pcpo.observe.markup import Safe
from pcpo.observe.numbers import number
from pcpo.observe.records import RunLog
from pcpo.observe.svg import Frame, fit, iterations_scale, path, titled

MARKED = 40
NARROW_BELOW = 400


def band_chart(groups: Sequence[Group], curve: Curve, label: str, width: int, height: int) -> Safe | None:
    """One line per group, in its colour and dash; None when no group has a value.

    From three seeds on a band shows the 95 % t interval; two seeds are drawn as two thin lines beside their mean.
    """
    found = [means(group, curve) for group in groups]
    pairs = [[_points(run.log, curve) for run in group.runs] if len(group.runs) == 2 else [] for group in groups]
    drawn = [point for rows in found for point in rows]
    if not drawn:
        return None
    frame = Frame(width, height if width > NARROW_BELOW else min(height, 270), left=70, right=14, top=12)
    x = iterations_scale([point.iteration for point in drawn], *frame.x_range)
    values = [point.mean for point in drawn]
    values += [side for point in drawn for side in (point.low, point.high) if side is not None]
    values += [value for singles in pairs for points in singles for _, value in points]
    y = fit(values, *frame.y_range, zero=not any(values))
    shapes: list[Safe | None] = []
    for place, (rows, singles) in enumerate(zip(found, pairs, strict=True)):
        banded = [(point.iteration, point.low, point.high) for point in rows]
        upper = [(x(at), y(high)) for at, _, high in banded if high is not None]
        lower = [(x(at), y(low)) for at, low, _ in banded if low is not None]
        shapes.append(path([*upper, *reversed(lower)], f"area g{place}", closed=True) if len(upper) > 1 else None)
        shapes += [path([(x(at), y(v)) for at, v in points], f"line single g{place}") for points in singles if points]
    for place, (group, rows) in enumerate(zip(groups, found, strict=True)):
        shapes.append(
            path([(x(p.iteration), y(p.mean)) for p in rows], f"line group g{place}") if len(rows) > 1 else None
        )
        if len(rows) <= MARKED:
            shapes += [
                titled("circle", _tooltip(group, p), cx=x(p.iteration), cy=y(p.mean), r=3.0, class_=f"dot g{place}")
                for p in rows
            ]
    return frame.draw(
        "band-chart",
        f"{label} over iterations. "
        + " ".join(
            f"{group.name}, {group.seeds}: from {number(rows[0].mean)} to {number(rows[-1].mean)}."
            for group, rows in zip(groups, found, strict=True)
            if rows
        ),
        frame.y_axis(y, label, 5 if width > NARROW_BELOW else 4),
        frame.x_axis(x, "iteration", 10 if width > 600 else 5),
        shapes,
    )


def _points(log: RunLog, curve: Curve) -> list[tuple[int, float]]:
    return [(at, value) for at, value in curve(log) if value is not None]


def _tooltip(group: Group, point: Mean) -> str:
    interval = (
        f" (95 %: {number(point.low)} to {number(point.high)})"
        if point.low is not None and point.high is not None
        else ""
    )
    return f"{group.name}, iteration {point.iteration}: {number(point.mean)}{interval}, {group.seeds}"
