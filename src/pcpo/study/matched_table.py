"""Quality at matched reward in the report: paired differences over seeds, a table and a figure, without any weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pcpo.data.untrusted import read_json
from pcpo.errors import RunFolderError
from pcpo.observe.markdown import escape
from pcpo.observe.numbers import number
from pcpo.study.figures.style import bar, new_figure, palette, plain, save, wording
from pcpo.study.stats import estimate, paired_difference
from pcpo.study.tables import markdown_table, text_of

REPORT = "report"
MATCHED = "matched.json"
MAX_BYTES = 1 << 26
TITLES = {"training": "training prompts", "held_out": "held-out prompts"}


def read_matched(folder: Path) -> dict[str, Any]:
    """What `pcpo study matched` has written beside the report: MODEL--REWARD -> figures; empty when it has not.

    Raises RunFolderError when it is damaged.
    """
    path = folder / MATCHED
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = read_json(path, MAX_BYTES)
        if not all(isinstance(group, dict) and "target" in group for group in found.values()):
            raise ValueError
    except (OSError, ValueError, AttributeError) as error:
        raise RunFolderError("cannot be read", where=str(path), fix="pcpo study matched makes it again") from error
    return found


def summary(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group with every arm's mean and paired difference from the baseline, by set of prompts and figure."""
    found: dict[str, Any] = {}
    for kind in group["sampling"]:
        names = list(dict.fromkeys(name for row in group["cells"].values() for name in row[kind]))
        found[kind] = {name: _figure(group, kind, name) for name in names}
    iterations = {
        arm: asdict(estimate([row["iteration"] for row in group["cells"].values() if row["arm"] == arm]))
        for arm in group["arms"]
    }
    return {**group, "iterations": iterations, "figures": found}


def against(group: Mapping[str, Any], baseline: str) -> Mapping[str, Any]:
    """A group with every arm's difference from another arm; as it is where it has no figures of that arm."""
    if baseline == group["baseline"] or baseline not in group["arms"] or group["target"] is None:
        return group
    return summary({**group, "baseline": baseline})


def _figure(group: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    values: dict[str, dict[int, float]] = {arm: {} for arm in group["arms"]}
    for row in group["cells"].values():
        if name in row[kind]:
            values[row["arm"]][row["seed"]] = row[kind][name]
    base = values.get(group["baseline"], {})
    return {
        arm: {
            "mean": asdict(estimate(list(of.values()))),
            "difference": None if arm == group["baseline"] else asdict(paired_difference(of, base)),
        }
        for arm, of in values.items()
    }


def matched_table(group: Mapping[str, Any]) -> str:
    """The differences of every arm from the baseline; why there are none where there is no target."""
    if group["target"] is None:
        return f"Quality at matched reward: none, {escape(group['reason'])}.\n"
    others = [arm for arm in group["arms"] if arm != group["baseline"]]
    rows = []
    for kind, figures in group["figures"].items():
        for name, arms in figures.items():
            base = arms[group["baseline"]]["mean"]
            cells = [text_of(arms[arm]["difference"]) for arm in others]
            rows.append((TITLES[kind], escape(name), number(base["mean"]), *cells))
    counts = ", ".join(
        f"{len(s['prompts'])} {TITLES[kind]} x {s['count']} pictures" for kind, s in group["sampling"].items()
    )
    weights = ", ".join(f"{arm} {text_of(found)}" for arm, found in group["iterations"].items())
    return (
        f"Quality at matched reward: every run by its first saved weights with an evaluation reward of "
        f"{number(group['target'])} or more ({number(group['start'])} before training); {len(group['seeds'])} seeds; "
        f"{counts}. Iteration of the weights: {weights}.\n\n"
    ) + markdown_table(("set", "figure", group["baseline"], *(f"{arm}, difference" for arm in others)), rows)


def draw_matched(group: Mapping[str, Any], path: Path) -> Path | None:
    """Draw the differences, in percent of the baseline's mean, as PNG; None where there is nothing to draw."""
    if group["target"] is None:
        return None
    others = [arm for arm in group["arms"] if arm != group["baseline"]]
    colours, marks = palette(group)
    names = [name for name in group["figures"]["training"] if "kernel" not in name]
    figure = new_figure(11, 0.28 * len(names) * max(len(others), 1) ** 0.5 + 1.6)
    axes = figure.subplots(1, len(group["figures"]), squeeze=False, sharey=True)[0]
    for axis, (kind, figures) in zip(axes, group["figures"].items(), strict=True):
        for row, name in enumerate(names):
            for place, arm in enumerate(others):
                y = row + (place - (len(others) - 1) / 2) * 0.6 / len(others)
                if found := _percent(figures.get(name), arm, group["baseline"]):
                    bar(axis, y, found, colours[arm], marks[arm])
        axis.axvline(0, color="#777777", linewidth=1)
        axis.set_yticks(range(len(names)), [wording(name) for name in names])
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlabel(f"minus {group['baseline']}, % of its mean")
        plain(axis, TITLES[kind])
    for arm in others:
        axes[-1].plot([], [], marks[arm], color=colours[arm], label=arm)
    axes[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{group['model']}, {group['reward']}: at a reward of {number(group['target'])}", fontsize=11)
    return save(figure, path)


def _percent(figures: Mapping[str, Any] | None, arm: str, baseline: str) -> dict[str, Any] | None:
    if not figures or not figures[baseline]["mean"]["mean"]:
        return None
    unit = abs(figures[baseline]["mean"]["mean"]) / 100
    found = figures[arm]["difference"]
    return {key: None if found[key] is None else found[key] / unit for key in ("mean", "low", "high")}
