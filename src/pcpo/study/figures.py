"""Figures of a study: learning curves with their bands, and times to the targets. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcpo.data.files import atomic_path
from pcpo.errors import ConfigError
from pcpo.study.stats import MIN_SEEDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's, told apart by colour-blind readers too; the baseline is grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
BASELINE = "#777777"
MARKS = "osD^vPX"


def require_matplotlib() -> None:
    """Raise ConfigError that names the extra when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("matplotlib is not installed", where="figures", fix="pip install 'pcpo[study]'") from None


def draw_group(group: Mapping[str, Any], path: Path) -> Path:
    """Draw one model and reward as PNG: curves over seeds, and restricted mean iterations to each target."""
    from matplotlib.figure import Figure

    targets = group["targets"]
    figure = Figure(figsize=(11 if targets else 6.5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if targets else 1, squeeze=False, width_ratios=[3, 2] if targets else [1])[0]
    others = [arm for arm in group["arms"] if arm != group["baseline"]]
    colours = {arm: COLOURS[n % len(COLOURS)] for n, arm in enumerate(others)} | {group["baseline"]: BASELINE}
    _curves(axes[0], group, colours)
    if targets:
        _times(axes[1], group, colours)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return path


def _curves(axis: Axes, group: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for arm, data in group["arms"].items():
        rows = [row for row in data["curve"] if row["mean"] is not None]
        if not rows:
            continue
        x = [row["iteration"] for row in rows]
        label = f"{arm} ({len(data['seeds'])} seeds)"
        axis.plot(x, [row["mean"] for row in rows], color=colours[arm], linewidth=2, label=label)
        if rows[0]["n"] >= MIN_SEEDS:
            low, high = ([row[side] for row in rows] for side in ("low", "high"))
            axis.fill_between(x, low, high, color=colours[arm], alpha=0.15, linewidth=0)
    for target in group["targets"]:
        axis.axhline(target["value"], color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
    title = f"{group['model']}, {group['reward']}: mean over seeds, 95 % band"
    axis.set(title=title, xlabel="iteration", ylabel="evaluation reward")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)


def _times(axis: Axes, group: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    arms, targets = list(group["arms"]), group["targets"]
    for place, arm in enumerate(arms):
        shift = (place - (len(arms) - 1) / 2) * 0.6 / len(arms)
        for row, target in enumerate(targets):
            found = target["arms"][arm]["restricted_mean"]["iterations"]
            if found["mean"] is None:
                continue
            y = row + shift
            if found["low"] is not None:
                axis.plot([found["low"], found["high"]], [y, y], color=colours[arm], linewidth=1.5)
            all_reached = target["arms"][arm]["reached"] == target["arms"][arm]["runs"]
            fill = colours[arm] if all_reached else "white"
            mark = MARKS[place % len(MARKS)]
            axis.plot([found["mean"]], [y], mark, color=colours[arm], markerfacecolor=fill, markersize=6)
    horizon = group["horizon"]
    axis.axvline(horizon, color="#bbbbbb", linewidth=0.8)
    axis.set_yticks(range(len(targets)), [target["label"].replace(" of the ", "\nof the ") for target in targets])
    axis.set(xlim=(0, horizon * 1.03), ylim=(-0.6, len(targets) - 0.4), xlabel="iterations (up to the end of the runs)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title("to the target; hollow: not reached by every run", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
