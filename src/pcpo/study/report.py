"""`pcpo study report`: figures, tables (Markdown) and numbers (JSON) from the cells that are finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcpo.data.files import write_text_atomic
from pcpo.errors import RunFolderError
from pcpo.observe.numbers import number
from pcpo.study.analysis import analyse
from pcpo.study.figures import (
    draw_along,
    draw_curves,
    draw_ends,
    draw_forest,
    draw_overall,
    draw_rates,
    draw_steps,
    require_matplotlib,
)
from pcpo.study.figures.style import FEW
from pcpo.study.matched_table import REPORT, against, draw_matched, matched_table, read_matched
from pcpo.study.results import collect, rounded, write_compact, write_table
from pcpo.study.runner import open_study
from pcpo.study.tables import also, ends, overall_table, targets

READING = """\
## How to read this

- One seed is one run. Runs of different arms with the same seed saw the same prompts and noises, so arms are compared
  seed by seed.
- Intervals are 95 % bootstrap intervals over seeds. On normal data they hold the truth in 94 to 95 % of cases
  from 8 seeds on, in 93 % with 5, 87 % with 4, and 75 % with 3, where they are the range. Below 3 seeds there is none.
- Times to a target are interpolated between evaluations. Where a run did not reach it, all times are cut at the end of
  the first such run (restricted mean), so the mean is a lower bound. Ratios are geometric means over the seeds that
  reached it in both arms; below 1 is faster. In the figures of ratios a hollow mark is made of times some of which are
  cut; with an arrow it is a bound.
- Collapsed: at both of the last two evaluations more than a fifth of the diversity is gone, or the reward is below its
  best by more than half of its standard deviation among pictures at the start, or a held-out reward is below its start
  by more than two of its standard deviations among prompts there.
- Seconds are those of training (rollouts, rewards, updates): iterations times the run's median iteration, so that a
  pause does not count. They still depend on the machine, and on what it did beside the run all along.
"""
FOREST, OVERALL = "iterations-to-target.png", "overall.png"
OVERALL_TITLE = "All rewards together, to the lowest target of each; a run that did not reach it counts with its end:"
CAPTIONS = {
    "curves": "Curves and times to targets.",
    "ends": "At the end, sorted by reward. Open marks are seeds, the dotted line is the value before training.",
    "along": "What the reward is paid with: star before training, cross at the end, small marks the seeds' ends.",
    "steps": "By sampling step: credit, measured gradient, clipping and log-ratios.",
    "rates": "Against the learning rate.",
    "matched": "Quality at matched reward, minus the baseline's, by seed.",
}


def write_study_report(output: Path, baseline: str | None = None) -> Path:
    """Write `report/` (report.md, report.json, figures) and results.csv; returns report.md.

    Against another arm than the study's own baseline it is `report-BASELINE/`. Raises ConfigError without matplotlib
    or for an arm that the study has not, RunFolderError when there is no study or no finished cell.
    """
    require_matplotlib()
    study, cells = open_study(output, baseline)
    results = collect(cells)
    write_table(results, output / "results.csv")
    figures = rounded(analyse(study, results))
    if not figures["groups"]:
        raise RunFolderError("has no finished cell yet", where=str(output), fix="pcpo study status shows how far it is")
    folder = output / (REPORT if baseline is None else f"{REPORT}-{baseline}")
    matched = read_matched(output / REPORT)
    parts = [_head(figures, len(cells))]
    parts += _over_groups(figures, folder)
    for group in figures["groups"]:
        measured = matched.get(f"{group['model']}--{group['reward']}")
        parts.append(_group(group, folder, measured and against(measured, group["baseline"])))
    write_compact(folder / "report.json", figures | {"planned": len(cells)})
    path = folder / "report.md"
    text = "\n".join([*parts, READING])
    write_text_atomic(path, text)
    _drop_unused(folder, text)
    return path


def _drop_unused(folder: Path, text: str) -> None:
    """Remove figures of an earlier report that this one does not show; files of other names are left alone."""
    for path in [
        folder / FOREST,
        folder / OVERALL,
        *(path for kind in CAPTIONS for path in folder.glob(f"*--{kind}.png")),
    ]:
        if f"]({path.name})" not in text:
            path.unlink(missing_ok=True)


def _head(figures: Mapping[str, Any], planned: int) -> str:
    done, begun = figures["cells"]["finished"], figures["cells"]["unfinished"]
    rest = f"; {begun} begun and {planned - done - begun} waiting are left out" if done < planned else ""
    return f"# {figures['name']}\n\n{done} of {planned} cells are finished{rest}.\n"


def _over_groups(figures: Mapping[str, Any], folder: Path) -> list[str]:
    """What is said of all models and rewards together."""
    parts = []
    overall = draw_overall(figures["groups"], figures["overall"], folder / OVERALL)
    if overall is not None:
        parts.append(f"![iterations to the lowest targets over the baseline's]({overall.name})\n")
        parts.append(f"{OVERALL_TITLE}\n\n{overall_table(figures['overall'])}")
    forest = draw_forest(figures["groups"], folder / FOREST)
    if forest is not None:
        parts.append(f"![iterations to every target over the baseline's]({forest.name})\n")
    return parts


def _group(group: Mapping[str, Any], folder: Path, matched: Mapping[str, Any] | None) -> str:
    drawn = _draw(group, folder, matched)
    begin = f"{number(group['start'])} before training, over {group['horizon']:g} iterations. "
    first = [drawn.pop(kind) for kind in ("curves", "ends") if kind in drawn]
    parts = [f"## {group['model']}, {group['reward']}\n", *first]
    parts += [f"Reward {begin}Baseline: {group['baseline']}.\n", ends(group)]
    if group["targets"]:
        parts.append(targets(group))
    if group["targets_below_start"]:
        parts.append(f"Targets reached before training: {', '.join(group['targets_below_start'])}.\n")
    parts += drawn.values()
    if matched is not None:
        parts.append(matched_table(matched))
    parts.append(also(group))
    return "\n".join(parts)


def _draw(group: Mapping[str, Any], folder: Path, matched: Mapping[str, Any] | None) -> dict[str, str]:
    """Every figure of a group that its data allow: kind -> Markdown."""
    name = f"{group['model']}--{group['reward']}"
    kinds = {"along": draw_along, "steps": draw_steps, "rates": draw_rates}
    first = {"curves": draw_curves} if len(group["arms"]) <= FEW else {"ends": draw_ends}
    found: dict[str, str] = {}
    for kind, draw in (first | kinds).items():
        picture = draw(group, folder / f"{name}--{kind}.png")
        if picture is not None:
            found[kind] = f"![{CAPTIONS[kind]}]({picture.name})\n\n{CAPTIONS[kind]}\n"
    if matched is not None:
        picture = draw_matched(matched, folder / f"{name}--matched.png")
        if picture is not None:
            found["matched"] = f"![{CAPTIONS['matched']}]({picture.name})\n\n{CAPTIONS['matched']}\n"
    return found
