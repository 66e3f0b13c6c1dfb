"""`pcpo study report`: figures, tables (Markdown) and numbers (JSON) from the cells that are finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pcpo.data.files import write_json_atomic, write_text_atomic
from pcpo.errors import RunFolderError
from pcpo.observe.markdown import escape
from pcpo.observe.numbers import number
from pcpo.study.analysis import TIMES, analyse
from pcpo.study.figures import draw_group, require_matplotlib
from pcpo.study.results import collect, write_table
from pcpo.study.runner import open_study

READING = """\
## How to read this

- One seed is one run. Runs of different arms with the same seed saw the same prompts and noises, so arms are compared
  seed by seed.
- Intervals are 95 % bootstrap intervals over seeds. On normal data they hold the truth in 94 to 95 % of cases
  from 8 seeds on, in 93 % with 5, 87 % with 4, and 75 % with 3, where they are the range. Below 3 seeds there is none.
- Times to a target are interpolated between evaluations. Where a run did not reach it, all times are cut at the end of
  the first such run (restricted mean), so the mean is a lower bound. Ratios are geometric means over the seeds that
  reached it in both arms; below 1 is faster.
- Seconds are those of training (rollouts, rewards, updates), and depend on what else the machine was doing.
"""


def write_study_report(output: Path) -> Path:
    """Write `report/` (report.md, report.json, a figure per model and reward) and results.csv; returns report.md.

    Raises ConfigError without matplotlib, RunFolderError when there is no study or no finished cell.
    """
    require_matplotlib()
    study, cells = open_study(output)
    results = collect(cells)
    write_table(results, output / "results.csv")
    figures = analyse(study, results)
    if not figures["groups"]:
        raise RunFolderError("has no finished cell yet", where=str(output), fix="pcpo study status shows how far it is")
    folder = output / "report"
    parts = [_head(figures, len(cells))]
    for group in figures["groups"]:
        picture = draw_group(group, folder / f"{group['model']}--{group['reward']}.png")
        parts.append(_group(group, picture.name))
    write_json_atomic(folder / "report.json", figures)
    path = folder / "report.md"
    write_text_atomic(path, "\n".join([*parts, READING]))
    return path


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


def _head(figures: Mapping[str, Any], planned: int) -> str:
    done, begun = figures["cells"]["finished"], figures["cells"]["unfinished"]
    rest = f"; {begun} begun and {planned - done - begun} waiting are left out" if done < planned else ""
    return f"# {figures['name']}\n\n{done} of {planned} cells are finished{rest}.\n"


def _group(group: Mapping[str, Any], picture: str) -> str:
    title = f"## {group['model']}, {group['reward']}"
    begin = f"{number(group['start'])} before training, over {group['horizon']:g} iterations. "
    parts = [
        f"{title}\n\n![curves and times to targets]({picture})\n",
        f"Reward {begin}Baseline: {group['baseline']}.\n",
    ]
    parts.append(_ends(group))
    if group["targets"]:
        parts.append(_targets(group))
    if group["targets_below_start"]:
        parts.append(f"Targets reached before training: {', '.join(group['targets_below_start'])}.\n")
    parts.append(_also(group))
    return "\n".join(parts)


def _ends(group: Mapping[str, Any]) -> str:
    rows = []
    for arm, data in group["arms"].items():
        changes = ", ".join(
            f"{escape(key)} {escape(str(old))} -> {escape(str(new))}" for key, (old, new) in data["difference"].items()
        )
        own = arm == group["baseline"]
        against = "" if own else text_of(data["end_against_baseline"])
        said = "baseline" if own else changes or "nothing"
        rows.append((arm, str(len(data["seeds"])), text_of(data["end"]), against, said))
    return markdown_table(("arm", "seeds", "reward at the end", "minus the baseline's", "differs in"), rows)


def _targets(group: Mapping[str, Any]) -> str:
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


def _ratio(found: Mapping[str, Any]) -> str:
    pairs = found["both"] + found["only_arm"] + found["only_baseline"] + found["neither"]
    if not found["both"]:
        return f"reached by both in 0 of {pairs} pairs"
    return f"{text_of(found['ratio'])}, {found['both']} of {pairs} pairs"


def _also(group: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for data in group["arms"].values() for name in data["also"]))
    nothing = {"mean": None, "n": 0}
    rows = [
        (escape(name.replace("_", " ")), *(text_of(data["also"].get(name, nothing)) for data in group["arms"].values()))
        for name in names
    ]
    return "At the last evaluation, and over all iterations:\n\n" + markdown_table(("figure", *group["arms"]), rows)
