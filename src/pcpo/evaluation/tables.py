"""Evaluations as tables in the terminal and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

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
    for place, features in enumerate(evaluations[0].features):
        terminal.print(_feature_table(evaluations, place))
        if any(d.biased for e in evaluations for d in e.features[place].distances):
            terminal.print(f"  {BIASED}", style="dim")
        if any(e.features[place].captions for e in evaluations):
            terminal.print(f"  retrieval and inception score over {features.captions} prompts", style="dim")
    if any(e.rewards for e in evaluations):
        names = list(dict.fromkeys(r.reward for e in evaluations for r in e.rewards))
        found = [{r.reward: r for r in e.rewards} for e in evaluations]
        rows = [[_spread(f[n].mean, f[n].std) if n in f else "" for n in names] for f in found]
        terminal.print(_table("rewards: mean +- std over pictures", names, evaluations, rows))
    monitors = list(evaluations[0].monitors)
    rows = [[number(e.monitors[name], 3) for name in monitors] for e in evaluations]
    terminal.print(_table("monitors", [name.replace("_", " ") for name in monitors], evaluations, rows))


def print_matches(runs: Sequence[MatchedRun], target: float, file: TextIO | None = None) -> None:
    """Which weights of each run are compared."""
    stream = file or sys.stdout
    terminal = Console(file=stream, highlight=False, width=None if stream.isatty() else WIDE)
    table = Table(
        title=f"first saved weights with an evaluation reward of {number(target)} or more", title_style="bold"
    )
    table.add_column("run", overflow="fold")
    for column in ("reached at", "weights of", "reward", "best"):
        table.add_column(column, justify="right")
    for run in runs:
        match = run.match
        cells = ("never", "", "") if match is None else (str(match.reached), str(match.iteration), number(match.reward))
        table.add_row(_clean(run.run), *cells, number(run.best))
    terminal.print(table)


def to_json(sampling: Sampling, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Evaluations with how their pictures were sampled, as JSON takes it; folders of pictures were not sampled."""
    return {"sampling": _sampling_json(sampling), "evaluations": [plain(asdict(e)) for e in evaluations]}


def matched_json(
    runs: Sequence[MatchedRun], target: float, training: Sampling, held_out: Sampling | None
) -> dict[str, Any]:
    """`quality_at_matched_reward` with how its pictures were sampled."""
    return {
        "target": target,
        "training": _sampling_json(training),
        "held_out": None if held_out is None else _sampling_json(held_out),
        "runs": [plain(asdict(run)) for run in runs],
    }


def _sampling_json(sampling: Sampling) -> dict[str, Any]:
    return {
        "prompts": [p.text for p in sampling.prompts],
        "count": sampling.count,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "seed": sampling.seed,
    }


def _feature_table(evaluations: Sequence[Evaluation], place: int) -> Table:
    rows = [e.features[place] for e in evaluations]
    references = list(dict.fromkeys(d.reference for row in rows for d in row.distances))
    heads = [f"{kind} to {name}" for name in references for kind in ("Frechet", f"kernel x{KERNEL_UNIT}")]
    heads += ["pairwise", "perceptual", "Vendi", "alignment", "retrieval", "inception score"]
    title = f"{rows[0].features}, {rows[0].dimensions} dimensions"
    return _table(title, heads, evaluations, [_feature_cells(row, references) for row in rows])


def _feature_cells(row: FeatureMetrics, references: Sequence[str]) -> list[str]:
    distances = {d.reference: d for d in row.distances}
    cells = []
    for name in references:
        d = distances.get(name)
        cells += (
            ["", ""]
            if d is None
            else [
                number(d.frechet, 3) + ("*" if d.biased else ""),
                number(d.kernel * KERNEL_UNIT, 3),
            ]
        )
    values = (row.pairwise, row.perceptual, row.vendi, row.alignment, row.retrieval, row.inception_score)
    return cells + ["" if value is None else number(value, 3) for value in values]


def _table(title: str, heads: Sequence[str], evaluations: Sequence[Evaluation], rows: Sequence[list[str]]) -> Table:
    table = Table(title=_clean(title), title_style="bold", title_justify="left")
    table.add_column("source", overflow="fold")
    table.add_column("pictures", justify="right")
    for head in heads:
        table.add_column(_clean(head), justify="right")
    for evaluation, cells in zip(evaluations, rows, strict=True):
        table.add_row(_clean(evaluation.name), str(evaluation.pictures), *cells)
    return table


def _spread(mean: float | None, std: float | None) -> str:
    return "abstained" if mean is None else f"{number(mean)} +- {number(std, 3)}"


def _clean(text: str) -> str:
    """A name or path that can neither move the cursor nor be read as markup."""
    return UNPRINTABLE.sub("?", text).replace("[", "\\[")


__all__ = ["matched_json", "print_evaluations", "print_matches", "to_json"]
