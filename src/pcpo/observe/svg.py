"""Axes, scales and paths: the pieces that every chart of the report is drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pcpo.observe.markup import Safe, element
from pcpo.observe.numbers import number

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """A map from data lo..hi to pixels start..end; logarithmic when log is set (lo must be positive then).

    floored: the low end of a logarithmic scale stands for zero, and is labelled so.
    """

    lo: float
    hi: float
    start: float
    end: float
    log: bool = False
    floored: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value; values outside the range stop at its ends."""
        value = min(max(value, self.lo), self.hi)
        if self.log:
            part = math.log(value / self.lo) / math.log(self.hi / self.lo)
        else:
            part = (value - self.lo) / (self.hi - self.lo)
        return self.start + part * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values within the range."""
        if self.log:
            first, last = math.ceil(math.log10(self.lo) - 1e-9), math.floor(math.log10(self.hi) + 1e-9)
            stride = max(1, math.ceil((last - first + 1) / count))
            first += self.floored
            return [10.0**power for power in range(last, first - 1, -stride)]
        raw = (self.hi - self.lo) / max(count, 1)
        base = 10.0 ** math.floor(math.log10(raw))
        step = next(base * nice for nice in (1, 2, 2.5, 5, 10) if base * nice >= raw * 0.999)
        first, last = math.ceil(self.lo / step - 1e-9), math.floor(self.hi / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def fit(values: Sequence[float], start: float, end: float, *, zero: bool = False, pad: float = 0.06) -> Scale:
    """A linear scale around the values, with some air; with zero, from 0 (values must not be negative)."""
    lo, hi = (0.0 if zero else min(values)), max(values)
    if hi - lo < 1e-12 * max(abs(hi), 1e-12):
        air = abs(hi) * 0.1 or 1.0
        return Scale(lo if zero else lo - air, hi + air, start, end)
    air = pad * (hi - lo)
    return Scale(lo if zero else lo - air, hi + air, start, end)


def iterations_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """The scale of an iteration axis: exact ends, or half an iteration to each side of a single one."""
    lo, hi = min(values), max(values)
    return Scale(lo, hi, start, end) if hi > lo else Scale(lo - 0.5, hi + 0.5, start, end)


def path(points: Sequence[Point], class_: str, *, closed: bool = False) -> Safe:
    """A polyline, or a filled outline when closed."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=f"M{steps}{'Z' if closed else ''}", class_=class_)


def text(x: float, y: float, words: str, class_: str = "tick", anchor: str = "middle", turn: bool = False) -> Safe:
    """A label at (x, y); turned by 90 degrees to the left when turn is set."""
    rotation = f"rotate(-90 {x:.1f} {y:.1f})" if turn else None
    return element("text", words, x=x, y=y, class_=class_, text_anchor=anchor, transform=rotation)


def titled(name: str, tooltip: str, **attributes: object) -> Safe:
    """A shape with a tooltip."""
    return element(name, element("title", tooltip), **attributes)


@dataclass(frozen=True)
class Frame:
    """The plotting area within a drawing of width x height pixels."""

    width: float
    height: float
    left: float = 56.0
    right: float = 14.0
    top: float = 14.0
    bottom: float = 44.0

    @property
    def x_range(self) -> Point:
        """Pixels of the left and right edge."""
        return self.left, self.width - self.right

    @property
    def y_range(self) -> Point:
        """Pixels of the bottom and top edge, in the order of growing values."""
        return self.height - self.bottom, self.top

    def y_axis(self, scale: Scale, label: str, count: int = 5, shares: bool = False) -> list[Safe]:
        """Grid lines, tick labels and the axis label on the left; shares are written as percentages."""
        marks: list[Safe] = []
        for value in scale.ticks(count):
            y = scale(value)
            words = f"{number(100 * value)} %" if shares else tick_label(value)
            marks.append(element("line", x1=self.left, x2=self.width - self.right, y1=y, y2=y, class_="grid"))
            marks.append(text(self.left - 7, y + 4, words, anchor="end"))
        if scale.floored:
            marks.append(text(self.left - 7, scale.start + 4, "0", anchor="end"))
        return [*marks, text(13, (self.top + self.height - self.bottom) / 2, label, "axis", turn=True)]

    def x_axis(self, scale: Scale, label: str, count: int = 8) -> list[Safe]:
        """The base line, whole-numbered ticks and the axis label below."""
        base = self.height - self.bottom
        ticks = [value for value in scale.ticks(count) if value == round(value)]
        ticks = ticks or [float(math.ceil(scale.lo))]
        return [
            element("line", x1=self.left, x2=self.width - self.right, y1=base, y2=base, class_="base"),
            *(text(scale(value), base + 17, f"{value:.0f}") for value in ticks),
            text((self.left + self.width - self.right) / 2, self.height - 6, label, "axis"),
        ]

    def draw(self, kind: str, summary: str, *children: object) -> Safe:
        """The finished drawing; `summary` is what a screen reader says."""
        return element(
            "svg",
            *children,  # type: ignore[arg-type]
            viewBox=f"0 0 {self.width:.0f} {self.height:.0f}",
            class_=kind,
            role="img",
            aria_label=summary,
        )


def tick_label(value: float) -> str:
    """A tick's number; float noise such as 0.30000000000000004 is rounded away."""
    return number(value, 3) if value == 0 or abs(value) < 1000 else number(value, 4)
