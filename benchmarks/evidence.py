"""Draws the studies whose results are kept in `docs/results`, and the tables on the page of each.

    python benchmarks/evidence.py                       # from what is kept
    python benchmarks/evidence.py --take main=runs/main # first keeps the finished cells of a study's folder

`pcpo study run docs/results/main/study.yaml --output runs/main --reuse docs/results/main` goes on with a study.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from headline import draw_headline
from pcpo.data.files import write_text_atomic
from pcpo.observe.numbers import number
from pcpo.study.analysis import analyse
from pcpo.study.archive import write_archive
from pcpo.study.figures.style import name_of
from pcpo.study.report import write_study_report
from pcpo.study.results import collect
from pcpo.study.runner import open_study
from pcpo.study.tables import markdown_table, overall_table, text_of

ROOT = Path(__file__).parents[1] / "docs" / "results"
# what lies between is written here: all arms of the study, all rewards together, or one arm against another
MARKS = re.compile(
    r"(?P<begin><!-- table: benchmarks/evidence\.py(?P<overall> overall)?"
    r"(?: (?P<arm>\S+) against (?P<baseline>\S+))? -->\n).*?(?P<end><!-- end of table -->\n)",
    re.DOTALL,
)


def study_table(figures: Mapping[str, Any]) -> str:
    """A row per model, reward and arm: reward at the end, and iterations to the targets over the baseline's."""
    head = ("model, reward", "arm", "seeds", "reward at the end", "minus the baseline's", "iterations / baseline's")
    table = markdown_table(head, [row for group in figures["groups"] for row in _rows(group)])
    return f"{figures['cells']['finished']} of {figures['planned']} cells are finished.\n\n{table}"


def pair_table(folder: Path, arm: str, baseline: str) -> str:
    """A row per model and reward that has both arms, and one per model over its rewards: one against the other."""
    figures = _against(folder, baseline)
    rows = []
    for group in figures["groups"]:
        if baseline in group["arms"] and arm in group["arms"]:
            minus = text_of(group["arms"][arm]["end_against_baseline"])
            rows.append((name_of(group), minus, _targets(group, arm)))
    rows += [
        (f"**{row['model']}**, {', '.join(row['targets']).replace('_', ' ')}", "", text_of(row["ratio"]))
        for row in figures["overall"]
        if row["arm"] == arm
    ]
    return markdown_table(("model, reward", f"{arm} minus {baseline} at the end", f"iterations / {baseline}'s"), rows)


@cache
def _against(folder: Path, baseline: str) -> dict[str, Any]:
    study, cells = open_study(folder, baseline)
    return analyse(study, collect(cells))


def _rows(group: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield (
        f"**{name_of(group)}**",
        "before training",
        "",
        number(group["start"]),
        "",
        "",
    )
    for arm, data in group["arms"].items():
        own = arm == group["baseline"]
        against = "" if own else text_of(data["end_against_baseline"])
        targets = "" if own else _targets(group, arm)
        yield "", arm, str(len(data["seeds"])), text_of(data["end"]), against, targets


def _targets(group: Mapping[str, Any], arm: str) -> str:
    return "; ".join(_ratios(group, arm)) or "no target reached by both"


def _ratios(group: Mapping[str, Any], arm: str) -> Iterator[str]:
    for target in group["targets"]:
        found = target["against_baseline"].get(arm, {}).get("iterations")
        if found and found["both"]:
            pairs = found["both"] + found["only_arm"] + found["only_baseline"] + found["neither"]
            yield f"{target['label']}: {text_of(found['ratio'])}, {found['both']} of {pairs}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", nargs="*", default=[], metavar="NAME=FOLDER")
    for part in parser.parse_args(argv).take:
        name, _, folder = part.partition("=")
        print(f"{name}: {write_archive(Path(folder), ROOT / name)} cells kept")
    for folder in sorted(page.parent for page in ROOT.glob("*/README.md")):
        write_study_report(folder)
        fill(folder)
    draw_headline(figures_of(ROOT / "main"), ROOT / "headline.png")


def figures_of(folder: Path) -> dict[str, Any]:
    """What the report of a study has computed."""
    return json.loads((folder / "report" / "report.json").read_text("utf-8"))


def fill(folder: Path) -> None:
    """Put the tables between the marks of a study's page."""
    figures = figures_of(folder)

    def table(mark: re.Match[str]) -> str:
        if mark["arm"]:
            made = pair_table(folder, mark["arm"], mark["baseline"])
        else:
            made = overall_table(figures["overall"]) if mark["overall"] else study_table(figures)
        return f"{mark['begin']}\n{made}\n{mark['end']}"

    page = folder / "README.md"
    write_text_atomic(page, MARKS.sub(table, page.read_text("utf-8")))


if __name__ == "__main__":
    main()
