"""Learning rates: arms named METHOD-xN, N times the usual rate, at their ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pcpo.study.figures.style import colours_of, line, new_figure, plain, save, title_of, wording

NAME = re.compile(r"(.+)-x(\d+(?:\.\d+)?)")


def rates(arms: Iterable[str]) -> dict[str, dict[float, str]]:
    """Method -> factor -> arm, of the methods that have two factors or more."""
    found: dict[str, dict[float, str]] = {}
    for arm in arms:
        if match := NAME.fullmatch(arm):
            found.setdefault(match[1], {})[float(match[2])] = arm
    return {method: dict(sorted(of.items())) for method, of in found.items() if len(of) > 1}


def draw_rates(group: Mapping[str, Any], path: Path) -> Path | None:
    """Draw reward, diversity and held-out rewards at the end against the rate as PNG; None without such arms.

    A cross over a mark says how many of the seeds have collapsed (`pcpo.study.along.collapsed`).
    """
    methods = rates(group["arms"])
    if not methods:
        return None
    shown = [arm for of in methods.values() for arm in of.values()]
    names = list(dict.fromkeys(name for arm in shown for name in group["arms"][arm]["along"]["measures"]))
    figure = new_figure(3.6 * max(len(names), 2), 3.8)
    axes = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
    base = NAME.fullmatch(group["baseline"])
    colours, marks = colours_of(list(methods), base[1] if base else "")
    for axis, name in zip(axes, names, strict=False):
        for method, of in methods.items():
            _method(axis, group, of, name, colours[method], marks[method], method)
        start = [group["arms"][arm]["along"]["measures"].get(name, [{"mean": None}])[0]["mean"] for arm in shown]
        known = [value for value in start if value is not None]
        if known:
            axis.axhline(sum(known) / len(known), color="#999999", linewidth=1, linestyle=":", zorder=0)
        ticks = sorted({factor for of in methods.values() for factor in of})
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks(ticks, [f"x{factor:g}" for factor in ticks])
        axis.set_xlabel("learning rate")
        plain(axis, f"{wording(name)} at the end")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title_of(group)}; dotted: before training; x m/n: m of n seeds collapsed", fontsize=10)
    return save(figure, path)


def _method(
    axis: Any, group: Mapping[str, Any], of: Mapping[float, str], name: str, colour: str, mark: str, label: str
) -> None:
    rows = [(factor, group["arms"][arm]) for factor, arm in of.items()]
    rows = [(factor, data) for factor, data in rows if data["along"]["measures"].get(name)]
    if not rows:
        return
    found = [data["along"]["measures"][name][-1] for _, data in rows]
    style = {"marker": mark, "linewidth": 1.6, "markersize": 6, "label": label}
    line(axis, [factor for factor, _ in rows], found, colour, **style)
    for (factor, data), end in zip(rows, found, strict=True):
        values = data["along"]["ends"][name]
        axis.plot([factor] * len(values), values, mark, color=colour, markerfacecolor="none", markersize=4, alpha=0.6)
        if data["collapsed"] and end["mean"] is not None:
            axis.plot([factor], [end["mean"]], "x", color="black", markersize=10, markeredgewidth=1.8, zorder=5)
            text = f"{data['collapsed']}/{len(data['seeds'])}"
            axis.annotate(text, (factor, end["mean"]), (7, 5), textcoords="offset points", fontsize=8)
