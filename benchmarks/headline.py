"""The README's figure: PCPO against its baseline, curves of one reward and iterations to a target over three.

Drawn by `benchmarks/evidence.py` from the report of the main study.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcpo.study.figures.forest import BAND, draw_ratio, over_rewards, paper_band
from pcpo.study.figures.style import colours_of, line, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINE, ARM = "native", "pcpo"
COLOURS, MARKS = colours_of([BASELINE, ARM], BASELINE)
NAMES = {BASELINE: "native credit, clipped ratio", ARM: "PCPO"}
MODELS = {
    "emoji-sd": "emoji-sd, DDIM",
    "emoji-sd3-flow": "emoji-sd3, Flow-SDE",
    "emoji-sd3-dance": "emoji-sd3, Dance-SDE",
}
CURVES = ("emoji-sd", "emoji-sd3-flow")
REWARD = "colorfulness"


def draw_headline(report: Mapping[str, Any], path: Path) -> Path:
    """Draw the figure as PNG from a `report.json`."""
    figure = new_figure(11, 3.3)
    *curves, ratios = figure.subplots(1, 3, width_ratios=[3, 3, 2.6])
    for axis, model in zip(curves, CURVES, strict=True):
        _curves(axis, next(g for g in report["groups"] if (g["model"], g["reward"]) == (model, REWARD)))
    curves[0].set_ylabel("evaluation reward")
    curves[0].legend(frameon=False, fontsize=8, loc="upper left")
    _ratios(ratios, {row["model"]: row for row in report["overall"] if row["arm"] == ARM})
    return save(figure, path)


def _curves(axis: Axes, group: Mapping[str, Any]) -> None:
    arms = group["arms"]
    iterations = [row["iteration"] for row in arms[ARM]["curve"]]
    for arm, name in NAMES.items():
        line(axis, iterations, arms[arm]["curve"], COLOURS[arm], linewidth=2, label=name)
    axis.set(xlabel="iteration", xticks=iterations)
    seeds = len(arms[ARM]["seeds"])
    plain(axis, f"{MODELS[group['model']]}: {group['reward']} ({seeds} seeds)")


def _ratios(axis: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    paper_band(axis)
    axis.text(sum(BAND) / 2, -0.42, "paper", fontsize=8, ha="center", color="#4477aa")
    axis.axvline(1, color=COLOURS[BASELINE], linewidth=2)
    for y, model in enumerate(MODELS):
        draw_ratio(axis, y, over_rewards(rows[model]), COLOURS[ARM], MARKS[ARM])
    axis.set_yticks(range(len(MODELS)), [name.replace(", ", "\n") for name in MODELS.values()])
    axis.set(xlim=(0, 1.25), ylim=(len(MODELS) - 0.5, -0.55), xlabel="iterations to a target / native's")
    plain(axis, "three rewards, 95 % intervals")
