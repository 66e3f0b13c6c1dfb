"""Iterations to a target over the baseline's, a row per target: of every reward, and of all rewards together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcpo.study.figures.style import Estimate, bar, name_of, new_figure, palette, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND = (0.71, 0.80)  # 20 to 29 % fewer epochs, as 2509.25774 reports
TICKS = (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3)
TOGETHER = "all together"
SPREAD = 0.75  # of a row's height, between its first and last arm

HEIGHT = 0.31  # inches of two arms
BESIDE = ("axes fraction", "data")


@dataclass(frozen=True)
class Ratio:
    """One arm in a row.

    A full mark is a geometric mean over runs that all reached the target. A hollow one is made of times some of which
    are cut at the end of the runs; with an arrow it is a bound, and the true ratio lies where that points.
    """

    found: Estimate
    hollow: bool
    arrow: str
    text: str


@dataclass(frozen=True)
class Section:
    """Rows under a title: label -> arm -> ratio."""

    title: str
    rows: Mapping[str, Mapping[str, Ratio]]


def draw_forest(groups: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draw the ratio of every arm at every target as PNG; None when there is no target."""
    sections = []
    for group in groups:
        rows = {
            target["label"].replace(" of the baseline's rise", ""): _at_target(group, target)
            for target in group["targets"]
        }
        sections.append(Section(name_of(group), rows))
    return _draw(sections, groups, path)


def draw_overall(groups: Sequence[Mapping[str, Any]], overall: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draw the ratios at the lowest targets, and those over all rewards below them, a section per model.

    None where no model has such a row.
    """
    sections = []
    for model in dict.fromkeys(row["model"] for row in overall):
        own = [group for group in groups if group["model"] == model and group["targets"]]
        rows = {
            f"{group['reward'].replace('_', ' ')} {group['targets'][0]['label']}": _at_target(
                group, group["targets"][0]
            )
            for group in own
        }
        rows[TOGETHER] = {row["arm"]: over_rewards(row) for row in overall if row["model"] == model}
        sections.append(Section(model, rows))
    return _draw(sections, groups, path)


def _draw(sections: Sequence[Section], groups: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    sections = [section for section in sections if section.rows]
    arms = list(dict.fromkeys(arm for group in groups for arm in group["arms"] if arm != group["baseline"]))
    if not sections or not arms:
        return None
    colours, marks = palette({**groups[0], "arms": [groups[0]["baseline"], *arms]})
    count = sum(len(section.rows) for section in sections)
    figure = new_figure(9, 1.1 + HEIGHT * (count * max(len(arms), 2) / 2 + len(sections)))
    axis = figure.subplots()
    paper_band(axis, label="20 to 29 % fewer, as in 2509.25774")
    axis.axvline(1, color="#777777", linewidth=1)
    ticks, y = [], -0.4
    for section in sections:
        y += 1.0
        axis.annotate(
            section.title, (-0.01, y - 0.75), xycoords=BESIDE, fontsize=8.5, weight="bold", ha="right", va="center"
        )
        for label, row in section.rows.items():
            ticks.append((y, label))
            used = [arm for arm in arms if arm in row]
            for place, arm in enumerate(used):
                at = y + (place - (len(used) - 1) / 2) * SPREAD / len(used)
                draw_ratio(axis, at, row[arm], colours[arm], marks[arm])
                axis.annotate(row[arm].text, (1.01, at), xycoords=BESIDE, fontsize=7, va="center", color=colours[arm])
            y += 1
    for arm in arms:
        axis.plot([], [], marks[arm], color=colours[arm], label=arm)
    axis.set_yticks(*zip(*ticks, strict=True), fontsize=8)
    for tick in axis.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() == TOGETHER else "normal")
    axis.set(
        xscale="log",
        xlim=(TICKS[0], TICKS[-1]),
        ylim=(y - 0.4, -0.6),
        xlabel="iterations / baseline's (log scale; left is faster)",
    )
    axis.minorticks_off()
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    plain(axis)
    figure.suptitle(
        "Iterations to the target over the baseline's: geometric mean, 95 % interval over seeds", fontsize=10
    )
    axis.annotate("reached it", (1.01, 1.0), xycoords="axes fraction", fontsize=8, va="bottom")
    axis.legend(
        frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.55 / figure.get_figheight()), ncols=5
    )
    return save(figure, path)


def paper_band(axis: Axes, **style: Any) -> None:
    """What the paper reports, as a band of ratios."""
    axis.axvspan(*BAND, color="#56b4e9", alpha=0.2, linewidth=0, **style)


def draw_ratio(axis: Axes, y: float, ratio: Ratio, colour: str, mark: str) -> None:
    """A ratio with its interval as a row at height y, as `Ratio` says."""
    bar(axis, y, ratio.found, colour, mark, hollow=ratio.hollow)
    if ratio.found["mean"] is not None and ratio.arrow:
        end = ratio.found["low" if ratio.arrow == "<" else "high"]
        place = ratio.found["mean"] if end is None else end
        axis.plot([place], [y], ratio.arrow, color=colour, markersize=6)


def _at_target(group: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Ratio]:
    return {arm: _of_arm(group, target, arm) for arm in target["against_baseline"]}


def _of_arm(group: Mapping[str, Any], target: Mapping[str, Any], arm: str) -> Ratio:
    against = target["against_baseline"][arm]["iterations"]
    cut = bool(against["only_arm"] or against["only_baseline"])
    found = against["bound"] if cut else against["ratio"]
    own, base = target["arms"][arm], target["arms"][group["baseline"]]
    text = f"{own['reached']}/{own['runs']} against {base['reached']}/{base['runs']}"
    if found["mean"] is None:
        text += ": none" if not own["reached"] and not base["reached"] else ": too few seeds"
    return Ratio(found, cut, _arrow(against["only_baseline"], against["only_arm"]), text)


def over_rewards(row: Mapping[str, Any]) -> Ratio:
    """A row of `pcpo.study.overall` as it is drawn."""
    missed, missed_by_baseline = row["runs"] - row["reached"], row["runs"] - row["baseline"]
    text = f"{row['reached']}/{row['runs']} against {row['baseline']}/{row['runs']}"
    return Ratio(row["ratio"], bool(missed or missed_by_baseline), _arrow(missed, missed_by_baseline), text)


def _arrow(missed: int, missed_by_baseline: int) -> str:
    """Where the true ratio lies: "<" where only baselines missed the target, ">" where only the arm did."""
    if missed and missed_by_baseline:
        return ""
    return ">" if missed else "<" if missed_by_baseline else ""
