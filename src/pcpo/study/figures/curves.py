"""Learning curves with their bands, and times to the targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcpo.study.figures.style import bar, line, new_figure, palette, plain, save, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(group: Mapping[str, Any], path: Path) -> Path:
    """Draw one model and reward as PNG: curves over seeds, and restricted mean iterations to each target."""
    targets = group["targets"]
    figure = new_figure(11 if targets else 6.5, 4)
    axes = figure.subplots(1, 2 if targets else 1, squeeze=False, width_ratios=[3, 2] if targets else [1])[0]
    colours, marks = palette(group)
    _curves(axes[0], group, colours)
    if targets:
        _times(axes[1], group, colours, marks)
    return save(figure, path)


def _curves(axis: Axes, group: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for arm, data in group["arms"].items():
        rows = [row for row in data["curve"] if row["mean"] is not None]
        label = f"{arm} ({len(data['seeds'])} seeds)"
        line(axis, [row["iteration"] for row in rows], rows, colours[arm], linewidth=2, label=label)
    for target in group["targets"]:
        axis.axhline(target["value"], color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
    axis.set(xlabel="iteration", ylabel="evaluation reward")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axis, title_of(group))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)


def _times(axis: Axes, group: Mapping[str, Any], colours: Mapping[str, str], marks: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    arms, targets, horizon = list(group["arms"]), group["targets"], group["horizon"]
    for place, arm in enumerate(arms):
        shift = (place - (len(arms) - 1) / 2) * 0.6 / len(arms)
        for row, target in enumerate(targets):
            found = target["arms"][arm]
            hollow = found["reached"] < found["runs"]
            bar(axis, row + shift, found["restricted_mean"]["iterations"], colours[arm], marks[arm], hollow=hollow)
    axis.axvline(horizon, color="#bbbbbb", linewidth=0.8)
    axis.set_yticks(range(len(targets)), [target["label"].replace(" of the ", "\nof the ") for target in targets])
    axis.set(xlim=(0, horizon * 1.03), ylim=(-0.6, len(targets) - 0.4), xlabel="iterations (up to the end of the runs)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axis, "to the target; hollow: not reached by every run", 9)
