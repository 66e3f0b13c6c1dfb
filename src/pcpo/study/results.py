"""What a cell has measured, as JSON in its folder, and one tidy table of all cells.

`results.json` is written when a cell is finished. Cells that are not are read from their logs, so the table and the
report show what is there at any time.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, pstdev
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from pcpo.data.files import write_json_atomic, write_text_atomic
from pcpo.data.untrusted import read_json
from pcpo.errors import RunFolderError, one_line
from pcpo.observe.events import read_events
from pcpo.observe.records import Count, Credit, Evaluation, GradientShare, Iteration, RunLog
from pcpo.study.plan import Cell

FORMAT = 1
DIGITS = 6
RESULTS = "results.json"
MAX_BYTES = 1 << 26
# Parts of an iteration's time that serve the diagnostics, not the training.
NOT_TRAINING = {"total", "probe"}
# Texts and single pictures of an evaluation stay in the run's own log.
NOT_CURVE = {"prompts", "values", "sheet", "pictures", "held_out_per_prompt", "monitors_per_prompt"}


class _Reached(Evaluation):
    """An evaluation, and the training up to it."""

    samples: Count = 0
    seconds: Annotated[float, Field(ge=0, le=1e300)] = 0.0
    held_out_std: dict[str, Annotated[float, Field(ge=0, le=1e300)]] = Field(default_factory=dict)


class _Results(BaseModel):
    """What is relied on in a `results.json`; other fields stay as they are."""

    model: str
    reward: str
    arm: str
    seed: int
    complete: bool
    iterations_done: Count
    seconds: Annotated[float, Field(ge=0, le=1e300)] = 0.0
    difference: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]
    evaluations: list[_Reached]
    iterations: Annotated[list[Iteration], Field(min_length=1)]
    gradient_share: list[GradientShare] = []
    credit: Credit | None = None
    config: dict[str, Any]


def cell_results(cell: Cell) -> dict[str, Any] | None:
    """Everything that a cell has measured so far; None before its first evaluation.

    `seconds` and `samples` count the training up to an evaluation: rollouts, rewards and updates, not the evaluations.
    """
    path = cell.folder / "events.jsonl"
    if not path.is_file():
        return None
    log = read_events(path)
    if not log.evaluations:
        return None
    seconds, samples = _totals(log)
    evaluations = []
    for event in log.evaluations:
        reached = {"samples": samples.get(event.iteration, 0), "seconds": seconds.get(event.iteration, 0.0)}
        evaluations.append({**event.model_dump(exclude=NOT_CURVE), **_among_prompts(event), **reached})
    last = log.iterations[-1].iteration if log.iterations else 0
    return {
        "format": FORMAT,
        "cell": cell.name,
        "model": cell.model,
        "reward": cell.reward,
        "arm": cell.arm,
        "seed": cell.seed,
        "complete": last >= cell.config.train.iterations and log.evaluations[-1].iteration == last,
        "iterations_done": last,
        "samples": samples.get(last, 0),
        "seconds": seconds.get(last, 0.0),
        "difference": difference(cell),
        "evaluations": evaluations,
        "iterations": [event.model_dump() for event in log.iterations],
        "gradient_share": [event.model_dump() for event in log.gradient_share],
        "credit": log.credit.model_dump() if log.credit else None,
        "environment": log.run_start.environment if log.run_start else {},
        "config": cell.config.model_dump(mode="json"),
    }


def difference(cell: Cell) -> dict[str, list[Any]]:
    """A cell's settings that are not the baseline's, as JSON holds them: dotted key -> [there, here]."""
    return {key: list(pair) for key, pair in cell.difference.items()}


def _among_prompts(event: Evaluation) -> dict[str, Any]:
    """Standard deviations of the held-out rewards among prompts; nothing where no prompt was told apart."""
    known = {name: [v for v in values if v is not None] for name, values in event.held_out_per_prompt.items()}
    spreads = {name: pstdev(values) for name, values in known.items() if len(values) > 1}
    return {"held_out_std": spreads} if spreads else {}


def _totals(log: RunLog) -> tuple[dict[int, float], dict[int, int]]:
    """Training seconds and samples up to each iteration."""
    seconds: dict[int, float] = {}
    total = 0.0
    for event in log.iterations:
        total += training_seconds(event.seconds)
        seconds[event.iteration] = total
    return seconds, {event.iteration: event.samples or 0 for event in log.iterations}


def training_seconds(parts: Mapping[str, float | None]) -> float:
    """Time of one iteration's rollouts, rewards and updates, from the times of all its parts."""
    return sum(value for name, value in parts.items() if name not in NOT_TRAINING and value is not None)


def pace(results: Mapping[str, Any]) -> float:
    """Training seconds of a typical iteration: the median, so that a pause of the machine is not the run's."""
    known = [seconds for row in results["iterations"] if (seconds := training_seconds(row.get("seconds") or {})) > 0]
    return median(known) if known else results["seconds"] / len(results["iterations"])


def write_results(cell: Cell) -> dict[str, Any]:
    """Write a finished cell's `results.json` and return it."""
    results = cell_results(cell)
    if results is None or not results["complete"]:
        raise RunFolderError("has not finished", where=str(cell.folder), fix="run the study again")
    write_json_atomic(cell.folder / RESULTS, results)
    return results


def read_results(cell: Cell) -> dict[str, Any] | None:
    """A cell's `results.json`; None without one, or when the study now asks for more iterations than it has.

    Raises RunFolderError when it is damaged.
    """
    path = cell.folder / RESULTS
    if not path.is_file():
        return None
    results = parse_results(path)
    return results if results["iterations_done"] >= cell.config.train.iterations else None


def parse_results(path: Path) -> dict[str, Any]:
    """The content of a `results.json`. Raises RunFolderError when it is damaged."""
    try:
        raw = read_json(path, MAX_BYTES)
        checked = _Results.model_validate(raw).model_dump(exclude={"evaluations": {"__all__": NOT_CURVE}})
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"cannot be read ({_reason(error)})",
            where=str(path),
            fix="delete this file: it is made again from the run's log",
        ) from error
    return {**raw, **checked}


def _reason(error: OSError | ValueError) -> str:
    if not isinstance(error, ValidationError):
        return one_line(error)
    first = error.errors()[0]
    return one_line(ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))


def collect(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Results of every cell that has any, finished or not, in the cells' order, with the cells' differences."""
    found = ((cell, read_results(cell) or cell_results(cell)) for cell in cells)
    return [results | {"difference": difference(cell)} for cell, results in found if results is not None]


def write_table(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write one row per cell and evaluation as CSV; a column for every figure that any evaluation has."""
    rows = []
    for cell in results:
        head = {key: cell[key] for key in ("model", "reward", "arm", "seed", "complete")}
        rows += [{**head, **columns(evaluation)} for evaluation in cell["evaluations"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())
    return path


def columns(value: Any, name: str = "") -> dict[str, Any]:
    """Nested figures as dotted columns; lists stay in the JSON."""
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for key, inner in value.items():
            out |= columns(inner, f"{name}.{key}" if name else key)
        return out
    return {} if isinstance(value, list) else {name: value}


def rounded(value: Any) -> Any:
    """The same nested data, floats cut to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_compact(path: Path, value: Any) -> None:
    """Write nested data as JSON in one line: less than half the size of indented."""
    write_text_atomic(path, json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")
