"""Many arms at a glance: what each has come to at the end, in rows sorted by reward."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcpo.study.figures.style import BASELINE, COLOURS, bar, new_figure, plain, save, title_of, wording


def draw_ends(group: Mapping[str, Any], path: Path) -> Path:
    """Draw a row per arm as PNG: reward at the end, minus the baseline's by seed, diversity, held-out rewards.

    Open marks are seeds; the dotted line is the value before training; the baseline is grey.
    """
    arms = sorted(group["arms"], key=lambda arm: _key(group["arms"][arm]))
    names = list(dict.fromkeys(name for arm in arms for name in group["arms"][arm]["along"]["ends"]))
    panels = ["reward", "difference", *(name for name in names if name != "reward")]
    figure = new_figure(2.9 * len(panels) + 1, 0.36 * len(arms) + 1.4)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, panels, strict=True):
        for place, arm in enumerate(arms):
            colour = BASELINE if arm == group["baseline"] else COLOURS[0]
            _row(axis, place, group["arms"][arm], name, colour)
        start = 0.0 if name == "difference" else _start(group, name)
        if start is not None:
            axis.axvline(start, color="#999999", linewidth=1, linestyle=":", zorder=0)
        axis.set_yticks(range(len(arms)), [f"{arm} ({len(group['arms'][arm]['seeds'])})" for arm in arms])
        axis.grid(axis="y", color="#eeeeee", linewidth=0.8)
        axis.set_axisbelow(True)
        titles = {"reward": "reward at the end", "difference": f"minus {group['baseline']}, by seed"}
        plain(axis, titles.get(name, wording(name)))
    figure.suptitle(title_of(group), fontsize=11)
    return save(figure, path)


def _row(axis: Any, place: int, data: Mapping[str, Any], name: str, colour: str) -> None:
    if name == "difference":
        bar(axis, place, data["end_against_baseline"], colour, "o")
        return
    values = data["along"]["ends"].get(name, [])
    axis.plot(values, [place] * len(values), "o", color=colour, markerfacecolor="none", markersize=4, alpha=0.6)
    found = data["along"]["measures"].get(name)
    if found:
        bar(axis, place, found[-1], colour, "o")


def _key(data: Mapping[str, Any]) -> float:
    mean = data["end"]["mean"]
    return float("-inf") if mean is None else mean


def _start(group: Mapping[str, Any], name: str) -> float | None:
    """The mean before training, the same for all arms."""
    found = [d["along"]["measures"][name][0] for d in group["arms"].values() if d["along"]["measures"].get(name)]
    means = [e["mean"] for e in found if e["mean"] is not None]
    return sum(means) / len(means) if means else None
