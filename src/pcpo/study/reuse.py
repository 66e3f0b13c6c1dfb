"""Results that another study has, taken over by cells with the same settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pcpo.data.files import write_json_atomic
from pcpo.errors import PCPOError, RunFolderError
from pcpo.study.plan import Cell
from pcpo.study.results import RESULTS, difference, parse_results
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import validate
from pcpo.trainer.runfolder import flat

# What may differ between a cell and the results that it takes over: where and how it ran, not what it computed.
FREE = {
    "evaluation.save",
    "name",
    "run.checkpoint_every",
    "run.device",
    "run.keep_checkpoints",
    "run.output",
    "run.threads",
    "run.tracker",
}


def take_over(cells: Iterable[Cell], sources: Sequence[Path]) -> list[str]:
    """Give cells that have nothing yet the results of cells with the same settings; returns the names of those served.

    `sources` are study folders or archives; the names of their models, rewards and arms do not matter. Raises
    RunFolderError for a source without cells or with damaged results.
    """
    waiting = [cell for cell in cells if not cell.folder.exists()]
    known = {key: path for source in sources for key, path in _stored(source)}
    served = []
    for cell in waiting:
        path = known.get(_key(cell.config))
        if path is None:
            continue
        own = {"cell": cell.name, "model": cell.model, "reward": cell.reward, "arm": cell.arm}
        write_json_atomic(cell.folder / RESULTS, {**parse_results(path), **own, "difference": difference(cell)})
        served.append(cell.name)
    return served


def check_taken_over(cell: Cell) -> None:
    """Raise RunFolderError when the results that a cell has without a run are of other settings."""
    path = cell.folder / RESULTS
    stored, wanted = _computed(stored_config(path)), _computed(cell.config)
    changed = [f"{key} {stored.get(key)} -> {wanted[key]}" for key in sorted(wanted) if stored.get(key) != wanted[key]]
    if changed:
        raise RunFolderError(
            f"results of other settings were taken over: {'; '.join(changed[:8])}",
            where=str(path),
            fix="choose another --output, or delete this file",
        )


def stored_config(path: Path) -> Config:
    """The settings of stored results, with today's defaults where they name none. Raises RunFolderError."""
    try:
        return validate(parse_results(path)["config"], str(path))
    except PCPOError as error:
        raise RunFolderError(f"cannot be used ({error.what})", where=str(path), fix="delete this file") from error


def _stored(source: Path) -> Iterable[tuple[str, Path]]:
    """(key of the settings, file) of every finished cell in a folder."""
    if not (source / "cells").is_dir():
        raise RunFolderError("holds no cells of a study", where=str(source), fix="name a study's folder or an archive")
    for path in sorted((source / "cells").glob(f"*/{RESULTS}")):
        yield _key(stored_config(path)), path


def _key(config: Config) -> str:
    return json.dumps(_computed(config), sort_keys=True)


def _computed(config: Config) -> dict[str, Any]:
    """The settings that say what a run computes: dotted key -> value."""
    return {key: value for key, value in flat(config.model_dump(mode="json")).items() if key not in FREE}
