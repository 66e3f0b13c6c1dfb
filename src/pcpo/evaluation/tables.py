"""Evaluations as tables in the terminal and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from pcpo.evaluation.compare import Sampling
from pcpo.evaluation.matched import MatchedRun
from pcpo.evaluation.measure import Evaluation, FeatureMetrics
from pcpo.observe.console import UNPRINTABLE
from pcpo.observe.events import plain
from pcpo.observe.numbers import number

WIDE = 200  # of a file or a pipe, where nothing has to be folded
KERNEL_UNIT = 1000  # kernel distances are small; the literature prints them times 1000
BIASED = "* not more pictures than dimensions: biased upwards; compare equal counts only, or read the kernel distance"


def print_evaluations(evaluations: Sequence[Evaluation], title: str = "", file: TextIO | None = None) -> None:
    """One table per feature set, one of rewards, one of monitors; a row is a source."""
    stream = file or sys.stdout
    terminal = Console(file=stream, highlight=False, width=None if stream.isatty() else WIDE)
    if title:
        terminal.print(_clean(title), style="bold", markup=False)
    for place in range(len(evaluations[0].features)):
        terminal.print(_feature_table(evaluations, place))
        if any(d.biased for e in evaluations for d in e.features[place].distances):
            terminal.print(BIASED, style="dim")
        if any(e.features[place].alignment is not None for e in evaluations):
            terminal.print(_caption_table(evaluations, place))
    if any(e.rewards for e in evaluations):
        names = list(dict.fromkeys(r.reward for e in evaluations for r in e.rewards))
        found = [{r.reward: r for r in e.rewards} for e in evaluations]
        rows = [[_spread(f[n].mean, f[n].std) if n in f else "" for n in names] for f in found]
        terminal.print(_table("rewards: mean +- std over pictures", names, evaluations, rows))
    monitors = list(evaluations[0].monitors)
    rows = [[_fixed(e.monitors[name]) for name in monitors] for e in evaluations]
    terminal.print(_table("monitors", [name.replace("_", "\n") for name in monitors], evaluations, rows))


def print_matches(runs: Sequence[MatchedRun], target: float, file: TextIO | None = None) -> None:
    """Which weights of each run are compared."""
    stream = file or sys.stdout
    terminal = Console(file=stream, highlight=False, width=None if stream.isatty() else WIDE)
    title = f"first saved weights with an evaluation reward of {target:g} or more"
    table = Table(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    for column in ("reached at", "weights of", "reward", "best"):
        table.add_column(column, justify="right")
    for run in runs:
        match = run.match
        cells = (
            ("never", "", "") if match is None else (str(match.reached), str(match.iteration), number(match.reward, 5))
        )
        table.add_row(_clean(run.run), *cells, number(run.best, 5))
    terminal.print(table)


def to_json(sampling: Sampling, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Evaluations with how their pictures were sampled, as JSON takes it; folders of pictures were not sampled."""
    return {"sampling": sampling.to_json(), "evaluations": [plain(asdict(e)) for e in evaluations]}


def matched_json(
    runs: Sequence[MatchedRun], target: float, training: Sampling, held_out: Sampling | None
) -> dict[str, Any]:
    """`quality_at_matched_reward` with how its pictures were sampled."""
    return {
        "target": target,
        "training": training.to_json(),
        "held_out": None if held_out is None else held_out.to_json(),
        "runs": [plain(asdict(run)) for run in runs],
    }


def _feature_table(evaluations: Sequence[Evaluation], place: int) -> Table:
    rows = [e.features[place] for e in evaluations]
    references = list(dict.fromkeys(d.reference for row in rows for d in row.distances))
    heads = [f"{kind}\nto {name}" for name in references for kind in ("Frechet", f"kernel x{KERNEL_UNIT}")]
    heads += ["pairwise", "perceptual", "Vendi"]
    title = f"distance and diversity in {_space(rows[0])}"
    return _table(title, heads, evaluations, [_feature_cells(row, references) for row in rows])


def _feature_cells(row: FeatureMetrics, references: Sequence[str]) -> list[str]:
    distances = {d.reference: d for d in row.distances}
    cells = []
    for name in references:
        d = distances.get(name)
        frechet = "" if d is None else _fixed(d.frechet) + ("*" if d.biased and d.frechet else "")
        cells += [frechet, "" if d is None else _fixed(d.kernel * KERNEL_UNIT)]
    return [*cells, _fixed(row.pairwise), _fixed(row.perceptual), _fixed(row.vendi)]


def _caption_table(evaluations: Sequence[Evaluation], place: int) -> Table:
    rows = [e.features[place] for e in evaluations]
    cells = [
        ["" if not row.captions else str(row.captions), _fixed(row.alignment), _fixed(row.retrieval)]
        + [_fixed(row.inception_score)]
        for row in rows
    ]
    heads = ["prompts", "alignment", "retrieval", "inception\nscore"]
    return _table(f"fit to the prompts in {_space(rows[0])}", heads, evaluations, cells)


def _space(row: FeatureMetrics) -> str:
    return f"{row.features}, {row.dimensions} dimensions"


def _table(title: str, heads: Sequence[str], evaluations: Sequence[Evaluation], rows: Sequence[list[str]]) -> Table:
    table = Table(title=_clean(title), title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("source", overflow="fold")
    table.add_column("pictures", justify="right")
    for head in heads:
        table.add_column("\n".join(map(_clean, head.split("\n"))), justify="right")
    for evaluation, cells in zip(evaluations, rows, strict=True):
        table.add_row(_clean(evaluation.name), str(evaluation.pictures), *cells)
    return table


def _fixed(value: float | None) -> str:
    """Three decimals where they say something, so that a column's points stand below each other."""
    if value is None:
        return ""
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 100 else number(value, 3)


def _spread(mean: float | None, std: float | None) -> str:
    return "abstained" if mean is None else f"{number(mean)} +- {number(std, 3)}"


def _clean(text: str) -> str:
    """A name or path that can neither move the cursor nor be read as markup."""
    return UNPRINTABLE.sub("?", text).replace("[", "\\[")


__all__ = ["matched_json", "print_evaluations", "print_matches", "to_json"]
