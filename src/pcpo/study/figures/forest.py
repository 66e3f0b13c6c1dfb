"""Iterations to a target over the baseline's: a row per target, under its model and reward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pcpo.study.figures.style import bar, new_figure, palette, plain, save

BAND = (0.71, 0.80)  # 20 to 29 % fewer epochs, as 2509.25774 reports
TICKS = (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3)

HEIGHT = 0.31  # inches of two arms
BESIDE = ("axes fraction", "data")


def draw_forest(groups: Sequence[Mapping[str, Any]], path: Path, arms: Iterable[str] | None = None) -> Path | None:
    """Draw the ratio of iterations of each arm and the baseline as PNG; None when there is no target.

    A full mark is the geometric mean over the seeds of which both arms reached the target, all of them. A hollow one
    with an arrow is a bound: where a run did not reach it, its time counts as the end of the runs. At the right: how
    many runs reached it, the arm's and the baseline's.
    """
    wanted = None if arms is None else list(arms)
    names = list(dict.fromkeys(arm for group in groups for arm in group["arms"] if arm != group["baseline"]))
    names = [name for name in names if wanted is None or name in wanted]
    rows = [(group, target) for group in groups for target in group["targets"]]
    if not rows or not names:
        return None
    figure = new_figure(9, 1.1 + HEIGHT * (len(rows) * max(len(names), 2) / 2 + len(groups)))
    axis = figure.subplots()
    axis.axvspan(*BAND, color="#56b4e9", alpha=0.2, linewidth=0, label="20 to 29 % fewer, as in 2509.25774")
    axis.axvline(1, color="#777777", linewidth=1)
    colours, marks = palette({**groups[0], "arms": [groups[0]["baseline"], *names]})
    ticks, y, last = [], 0.0, None
    for group, target in rows:
        if group is not last:
            y += 1.0 if last is not None else 0.6
            last = group
            title = f"{group['model']}, {group['reward'].replace('_', ' ')}"
            axis.annotate(
                title, (-0.01, y - 0.75), xycoords=BESIDE, fontsize=8.5, weight="bold", ha="right", va="center"
            )
        used = [name for name in names if name in target["against_baseline"]]
        for place, name in enumerate(used):
            _ratio(
                axis, y + (place - (len(used) - 1) / 2) * 0.75 / max(len(used), 1), group, target, name, colours, marks
            )
        ticks.append((y, target["label"].replace(" of the baseline's rise", "")))
        y += 1
    for name in names:
        axis.plot([], [], marks[name], color=colours[name], label=name)
    axis.set_yticks(*zip(*ticks, strict=True), fontsize=8)
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
        frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.55 / figure.get_figheight()), ncols=4
    )
    return save(figure, path)


def _ratio(
    axis: Any,
    y: float,
    group: Mapping[str, Any],
    target: Mapping[str, Any],
    arm: str,
    colours: Mapping[str, str],
    marks: Mapping[str, str],
) -> None:
    against = target["against_baseline"][arm]["iterations"]
    open_ends = against["only_arm"] + against["only_baseline"]
    found = against["bound"] if open_ends else against["ratio"]
    bar(axis, y, found, colours[arm], marks[arm], hollow=bool(open_ends))
    if found["mean"] is not None and open_ends and not (against["only_arm"] and against["only_baseline"]):
        sign = "<" if against["only_arm"] else ">"
        place = found["low"] if against["only_arm"] else found["high"]
        axis.plot([found["mean"] if place is None else place], [y], sign, color=colours[arm], markersize=6)
    own, base = target["arms"][arm], target["arms"][group["baseline"]]
    text = f"{own['reached']}/{own['runs']} against {base['reached']}/{base['runs']}"
    if found["mean"] is None:
        text += ": none" if not own["reached"] and not base["reached"] else ": too few seeds"
    axis.annotate(text, (1.01, y), xycoords=BESIDE, fontsize=7, va="center", color=colours[arm])
