"""What the reward is paid with: diversity and held-out rewards against the reward, along training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcpo.study.figures.style import FEW, new_figure, palette, plain, save, title_of, wording


def draw_along(group: Mapping[str, Any], path: Path) -> Path | None:
    """Draw one model and reward as PNG; None when only the reward was measured, or there are more than five arms.

    A line goes through the means of the evaluations, from the common start on; the cross at its end has the 95 %
    intervals of both, small marks are the ends of the seeds. A line that falls below the others' at equal reward
    pays more for it.
    """
    arms = {arm: data["along"] for arm, data in group["arms"].items() if len(data["along"]["iterations"]) > 1}
    names = list(dict.fromkeys(name for found in arms.values() for name in found["measures"] if name != "reward"))
    if not names or len(arms) > FEW:
        return None
    figure = new_figure(4.2 * len(names), 3.9)
    colours, marks = palette(group)
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for arm, found in arms.items():
            if name in found["measures"]:
                _path(axis, found, name, colours[arm], marks[arm], arm)
        axis.set(xlabel=f"reward: {group['reward']}", ylabel=wording(name))
        plain(axis, wording(name))
        if name == names[0] and axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title_of(group), fontsize=11)
    return save(figure, path)


def _path(axis: Any, found: Mapping[str, Any], name: str, colour: str, mark: str, label: str) -> None:
    pairs = [
        (x, y)
        for x, y in zip(found["measures"]["reward"], found["measures"][name], strict=True)
        if x["mean"] is not None and y["mean"] is not None
    ]
    axis.plot(found["ends"]["reward"], found["ends"][name], mark, color=colour, markersize=3.5, alpha=0.45)
    if not pairs:
        return
    points = [[e["mean"] for e in side] for side in zip(*pairs, strict=True)]
    axis.plot(*points, color=colour, linewidth=1.8, marker=".", markersize=5, label=label)
    x, y = pairs[-1]
    axis.plot([x["mean"]], [y["mean"]], mark, color=colour, markersize=7, markeredgecolor="white")
    if x["low"] is not None:
        axis.plot([x["low"], x["high"]], [y["mean"]] * 2, color=colour, linewidth=1)
        axis.plot([x["mean"]] * 2, [y["low"], y["high"]], color=colour, linewidth=1)
    axis.plot(points[0][0], points[1][0], "*", color="black", markersize=9, zorder=5)
