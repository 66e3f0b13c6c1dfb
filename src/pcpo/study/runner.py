"""Run the cells of a study: claim one, train or resume it, write its results, next; until nothing is left to claim.

Any number of runners share a folder. A cell that fails is recorded, and the study goes on.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcpo.data.files import write_json_atomic, write_text_atomic
from pcpo.errors import PCPOError, RunFolderError
from pcpo.observe.console import Console
from pcpo.study import claims
from pcpo.study.plan import Cell, Study, load_study, make_cells, narrow, refusals
from pcpo.study.progress import Progress, iterations_logged
from pcpo.study.results import collect, read_results, write_results, write_table
from pcpo.study.reuse import check_taken_over, take_over

STUDY_FILE = "study.yaml"
MAX_DEATHS = 3


@dataclass
class Outcome:
    """What one runner did: names of cells."""

    finished: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)


def open_study(output: Path, baseline: str | None = None) -> tuple[Study, list[Cell]]:
    """The study and cells of a folder that `run_study` has made, against another arm where one is given.

    Raises RunFolderError when it is none, ConfigError for an arm that it has not.
    """
    path = output / STUDY_FILE
    if not path.is_file():
        raise RunFolderError("holds no study", where=str(output), fix="name the --output folder of pcpo study run")
    study = load_study(path)
    if baseline is not None:
        study = study.against(baseline)
    return study, make_cells(study, output)


def run_study(
    file: str | Path,
    output: str | Path,
    *,
    shard: str = "",
    reuse: Sequence[Path] = (),
    only: Sequence[str] = (),
    retry_failed: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Run what is left of a study, sharing `output` with other runners.

    Every cell's settings, model header, prompts and rewards are checked before the first one starts. Raises PCPOError
    that names a refused cell. `shard` labels this runner's claims; `reuse` names studies or archives whose results are
    taken over by cells with the same settings; `only` are filters as `narrow` reads them: other cells are left alone.
    """
    study, output = load_study(file), Path(output)
    every = make_cells(study, output)
    cells = narrow(study, every, only)
    check(cells, output)
    text = Path(file).read_text("utf-8")
    write_text_atomic(output / STUDY_FILE, text)
    shard = shard or f"{os.getpid()}"
    outcome = Outcome(reused=take_over(cells, reuse))
    with Progress(cells, quiet) as progress:
        progress.plan(study, cells, len(outcome.reused))
        tried: set[str] = set()
        while True:
            claim, cell = _next(output, cells, shard, tried, retry_failed)
            if claim is None or cell is None:
                break
            tried.add(cell.name)
            _run_claimed(cell, claim, output, outcome, progress)
            write_table(collect(every), output / "results.csv")
        outcome.elsewhere = [cell.name for cell in cells if state(cell, output) == "running"]
        progress.end(outcome.finished, outcome.failed, outcome.elsewhere)
    return outcome


def check(cells: Sequence[Cell], output: Path) -> None:
    """Refuse what can be refused without a weight, naming the cell: prompts, model, sampler, rewards, stored runs."""
    from pcpo.data.prompts import load_prompts
    from pcpo.models.folders import read_header
    from pcpo.models.loading import adapter_class
    from pcpo.rewards.registry import build_rewards
    from pcpo.trainer.parts import check_family

    seen: set[str] = set()
    for cell in cells:
        config = cell.config
        with refusals(cell.name):
            if claims.owner(output / "claims", cell.name) is None:  # another runner may be making the folder just now
                _check_folder(cell)
            sections = config.model_dump(mode="json", exclude={"run", "name", "optim"})
            key = json.dumps(sections, sort_keys=True)
            if key in seen:
                continue
            seen.add(key)
            load_prompts(config.prompts)
            if config.evaluation.prompts:
                load_prompts(config.evaluation.prompts)
            check_family(config, adapter_class(read_header(config.model.path)).kind)
            rewards = json.dumps(sections["reward"], sort_keys=True)
            if rewards not in seen:
                build_rewards([(part.name, part.weight, part.options) for part in config.reward])
                seen.add(rewards)


def _check_folder(cell: Cell) -> None:
    from pcpo.trainer.runfolder import check_output

    if _started(cell) or read_results(cell) is None:
        check_output(cell.config, resume=_started(cell))
    else:
        check_taken_over(cell)


def state(cell: Cell, output: Path) -> str:
    """done, failed, running, started or waiting."""
    if read_results(cell) is not None:
        return "done"
    if claims.owner(output / "claims", cell.name) is not None:
        return "running"
    if failure_path(cell, output).is_file():
        return "failed"
    return "started" if _started(cell) else "waiting"


def failure_path(cell: Cell, output: Path) -> Path:
    """Where a cell's failure is recorded."""
    return output / "failures" / f"{cell.name}.json"


def read_failure(cell: Cell, output: Path) -> dict[str, Any]:
    """The record of a cell's failure; empty when it has none that can be read."""
    record = claims.read(failure_path(cell, output))
    return record or {}


def _next(
    output: Path, cells: Sequence[Cell], shard: str, tried: set[str], retry_failed: bool
) -> tuple[claims.Claim | None, Cell | None]:
    """Claim the first cell that is neither done nor taken; (None, None) when there is none."""
    for cell in cells:
        if cell.name in tried or not _open(cell, output, retry_failed):
            continue
        claim = claims.take(output / "claims", cell.name, shard, progress=iterations_logged(cell))
        if claim is None:
            continue
        if _open(cell, output, retry_failed):  # it may have been finished between the look and the claim
            return claim, cell
        with claim:
            continue
    return None, None


def _open(cell: Cell, output: Path, retry_failed: bool) -> bool:
    return read_results(cell) is None and (retry_failed or not failure_path(cell, output).is_file())


def _started(cell: Cell) -> bool:
    return (cell.folder / "config.yaml").is_file()


def _run_claimed(cell: Cell, claim: claims.Claim, output: Path, outcome: Outcome, progress: Progress) -> None:
    """Run one cell under its claim; record a failure; leave it when another runner took it over."""
    began = time.time()
    failure_path(cell, output).unlink(missing_ok=True)
    with claim:
        try:
            _refuse_deadly(claim)
            results = _train(cell, progress.follow(cell, claim))
        except claims.ClaimLost:
            progress.lost(cell)
        except Exception as error:  # whatever a cell raises is recorded; the other cells go on
            _record_failure(cell, error, output, began)
            outcome.failed.append(cell.name)
            progress.failed(cell, error)
        else:
            outcome.finished.append(cell.name)
            progress.finished(cell, results)


def _refuse_deadly(claim: claims.Claim) -> None:
    if claim.deaths >= MAX_DEATHS:
        done = claim.record["progress"]
        raise RunFolderError(
            f"{claim.deaths} processes died on it, all without getting further than iteration {done}",
            fix="look for what kills them (memory?), then pcpo study run --retry-failed",
        )


def _train(cell: Cell, console: Console) -> dict[str, Any]:
    """The run that `pcpo train` would make with these settings, resumed where it was begun."""
    from pcpo.observe.report import write_report
    from pcpo.trainer.loop import PCPOTrainer

    PCPOTrainer(config=cell.config, resume=_started(cell), console=console).train()
    write_report(cell.folder)
    return write_results(cell)


def _record_failure(cell: Cell, error: Exception, output: Path, began: float) -> None:
    lines = traceback.format_exception(error)
    record = {
        "cell": cell.name,
        "kind": type(error).__name__,
        "error": " ".join(str(error).split()),
        "traceback": [] if isinstance(error, PCPOError) else "".join(lines).splitlines(),
        "time": time.time(),
        "seconds": time.time() - began,
    }
    write_json_atomic(failure_path(cell, output), record)
