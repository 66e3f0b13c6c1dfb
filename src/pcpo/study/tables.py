"""Tables of a study's report, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pcpo.observe.markdown import escape
from pcpo.observe.numbers import number
from pcpo.study.analysis import TIMES


def text_of(found: Mapping[str, Any]) -> str:
    """An estimate in words: mean [low, high]; never a single seed."""
    if found["mean"] is None:
        return f"too few seeds ({found['n']})"
    if found["low"] is None:
        return f"{number(found['mean'])} (too few seeds: {found['n']})"
    return f"{number(found['mean'])} [{number(found['low'])}, {number(found['high'])}]"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def ends(group: Mapping[str, Any]) -> str:
    """Reward at the end of every arm, against the baseline's, and how many runs collapsed."""
    rows = []
    for arm, data in group["arms"].items():
        changes = ", ".join(
            f"{escape(key)} {escape(str(old))} -> {escape(str(new))}" for key, (old, new) in data["difference"].items()
        )
        own = arm == group["baseline"]
        against = "" if own else text_of(data["end_against_baseline"])
        said = "baseline" if own else changes or "nothing"
        lost = f"{data.get('collapsed', 0)} of {len(data['seeds'])}"
        rows.append((arm, str(len(data["seeds"])), text_of(data["end"]), against, lost, said))
    head = ("arm", "seeds", "reward at the end", "minus the baseline's", "collapsed", "differs in")
    return markdown_table(head, rows)


def targets(group: Mapping[str, Any]) -> str:
    """Times to every target, and over the baseline's."""
    rows = []
    for target in group["targets"]:
        for arm, found in target["arms"].items():
            against = target["against_baseline"].get(arm)
            ratios = ["", ""]
            if against is not None:
                ratios = [_ratio(against[axis]) for axis in ("iterations", "seconds")]
            means = [text_of(found["restricted_mean"][axis]) if found["reached"] else "not reached" for axis in TIMES]
            label = f"{target['label']} ({number(target['value'])})"
            rows.append((label, arm, f"{found['reached']} of {found['runs']}", *means, *ratios))
    head = ("target", "arm", "reached", *TIMES, "iterations / baseline's", "seconds / baseline's")
    return markdown_table(head, rows)


def overall_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Iterations to the lowest targets of all rewards together, over the baseline's."""
    cells = []
    for row in rows:
        reached = f"{row['reached']} of {row['runs']}, baseline {row['baseline']}"
        labels = escape(", ".join(map(" ".join, row["targets"].items())))
        cells.append((row["model"], row["arm"], text_of(row["ratio"]), reached, labels))
    return markdown_table(("model", "arm", "iterations / baseline's", "reached it", "to the targets"), cells)


def _ratio(found: Mapping[str, Any]) -> str:
    pairs = found["both"] + found["only_arm"] + found["only_baseline"] + found["neither"]
    if not found["both"]:
        return f"reached by both in 0 of {pairs} pairs"
    return f"{text_of(found['ratio'])}, {found['both']} of {pairs} pairs"


def also(group: Mapping[str, Any]) -> str:
    """What else was measured, a column per arm."""
    names = list(dict.fromkeys(name for data in group["arms"].values() for name in data["also"]))
    nothing = {"mean": None, "n": 0}
    rows = [
        (escape(name.replace("_", " ")), *(text_of(data["also"].get(name, nothing)) for data in group["arms"].values()))
        for name in names
    ]
    return "At the last evaluation, and over all iterations:\n\n" + markdown_table(("figure", *group["arms"]), rows)
