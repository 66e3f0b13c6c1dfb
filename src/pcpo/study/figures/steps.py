"""What happens at each sampling step: credit, measured gradient, clipping, log-ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcpo.study.figures.style import FEW, line, new_figure, palette, plain, save, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Arms = Mapping[str, Mapping[str, Any]]
PANELS = (
    ("target", "credit by formula, share", False),
    ("share", "gradient norm as measured, share", False),
    ("variance", "gradient variance as measured, share", False),
    ("clip_fraction", "clip fraction", False),
    ("log_ratio_std", "std of the log-ratio", True),
)


def draw_steps(group: Mapping[str, Any], path: Path) -> Path | None:
    """Draw the steps of one model and reward as PNG; None when no run has logged any.

    Lines up to five arms; more are rows of a heat map.
    """
    arms = {arm: data["per_step"] for arm, data in group["arms"].items() if data["per_step"]}
    if not arms:
        return None
    return (_lines if len(arms) <= FEW else _maps)(group, arms, path)


def _lines(group: Mapping[str, Any], arms: Arms, path: Path) -> Path:
    """Panels of what was measured: without probes there is one row."""
    shown = [panel for panel in PANELS[:4] if any(panel[0] in found for found in arms.values())]
    rows = -(-(len(shown) + 2) // 3)
    figure = new_figure(12.5, 3.4 * rows)
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    colours, marks = palette(group)
    for axis, (name, title, _) in zip(axes, shown, strict=False):
        for arm, found in arms.items():
            if name in found:
                style = {"marker": marks[arm], "markersize": 4.5, "linewidth": 1.6, "label": arm}
                line(axis, _places(found["steps"]), found[name], colours[arm], **style)
        _by_step(axis, title)
        axis.set_ylim(bottom=0)
    if axes[0].get_legend_handles_labels()[0]:  # a single seed draws nothing
        axes[0].legend(frameon=False, fontsize=8)
    _clip_over_iterations(axes[len(shown)], group, colours)
    _quantiles(axes[len(shown) + 1], arms, colours)
    for axis in axes[len(shown) + 2 :]:
        axis.remove()
    figure.suptitle(title_of(group), fontsize=11)
    return save(figure, path)


def _clip_over_iterations(axis: Axes, group: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for arm, data in group["arms"].items():
        over = data["over_iterations"]
        line(axis, over["iterations"], over["clip_fraction"], colours[arm], linewidth=1.6)
    axis.set_xlabel("iteration")
    axis.set_ylim(bottom=0)
    _whole(axis)
    plain(axis, "clip fraction over the training")


def _quantiles(axis: Axes, arms: Arms, colours: Mapping[str, str]) -> None:
    """A bar from the 1 % to the 99 % quantile at every step, with a tick at the median."""
    shown = {arm: found for arm, found in arms.items() if {"log_ratio_p01", "log_ratio_p99"} <= found.keys()}
    for place, (arm, found) in enumerate(shown.items()):
        shift = (place - (len(shown) - 1) / 2) * 0.8 / len(shown)
        for step, low, middle, high in zip(
            _places(found["steps"]),
            *(found[f"log_ratio_{name}"] for name in ("p01", "p50", "p99")),
            strict=True,
        ):
            if low["mean"] is None or high["mean"] is None:
                continue
            axis.plot([step + shift] * 2, [low["mean"], high["mean"]], color=colours[arm], linewidth=3.2, alpha=0.75)
            axis.plot([step + shift], [middle["mean"]], "_", color="black", markersize=5)
    axis.set_yscale("symlog", linthresh=_linear_up_to(shown))
    axis.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    _by_step(axis, "log-ratio: 1 % to 99 % quantile, median")


def _linear_up_to(arms: Arms) -> float:
    """Where the logarithmic part of the axis begins: at the smallest quantile drawn, three decades at most."""
    found = [e["mean"] for data in arms.values() for n in ("p01", "p99") for e in data[f"log_ratio_{n}"]]
    values = [abs(value) for value in found if value]
    return max(min(values), max(values) / 1000) if values else 1e-6


def _maps(group: Mapping[str, Any], arms: Arms, path: Path) -> Path:
    shown = [panel for panel in PANELS if any(panel[0] in found for found in arms.values())]
    figure = new_figure(3.2 * len(shown) + 1.2, 0.34 * len(arms) + 1.5)
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axis, (name, title, logarithmic) in zip(axes, shown, strict=True):
        _map(axis, arms, name, logarithmic)
        axis.set_title(title, fontsize=9, loc="left")
    figure.suptitle(title_of(group), fontsize=11)
    return save(figure, path)


def _map(axis: Axes, arms: Arms, name: str, logarithmic: bool) -> None:
    """Arms x steps, a colour by the mean over seeds."""
    from matplotlib.colors import LogNorm

    steps = sorted({step for found in arms.values() for step in found["steps"]})
    table = []
    for found in arms.values():
        row = dict(zip(found["steps"], found.get(name, []), strict=False))
        table.append([_mean(row.get(step)) for step in steps])
    known = [value for row in table for value in row if value == value and value > 0]
    norm = LogNorm(min(known), max(known)) if logarithmic and known else None
    drawn = axis.imshow(table, aspect="auto", cmap="viridis", norm=norm, vmin=None if norm else 0)
    axis.set_yticks(range(len(arms)), list(arms), fontsize=8)
    axis.set_xticks(range(len(steps)), [str(step + 1) for step in steps], fontsize=8)
    axis.set_xlabel("step", fontsize=9)
    axis.figure.colorbar(drawn, ax=axis, location="bottom", pad=0.02, aspect=25).ax.tick_params(labelsize=7)


def _mean(found: Mapping[str, Any] | None) -> float:
    return float("nan") if found is None or found["mean"] is None else found["mean"]


def _places(steps: Sequence[int]) -> list[int]:
    """Steps as readers count them, from 1, the noisiest."""
    return [step + 1 for step in steps]


def _by_step(axis: Axes, title: str) -> None:
    axis.set_xlabel("step (1: from pure noise)")
    _whole(axis)
    plain(axis, title)


def _whole(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
