"""Results without their runs: small enough to be kept in a repository, and taken over where a study needs them again.

An archive is a study's folder of `study.yaml`, the finished cells' `results.json` and what was measured at matched
reward: it can be reported on, and `pcpo study run --reuse ARCHIVE` goes on from it elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pcpo.data.files import write_json_atomic, write_text_atomic
from pcpo.errors import RunFolderError
from pcpo.study.matched_table import MATCHED, REPORT, read_matched
from pcpo.study.results import RESULTS, parse_results, read_results, rounded, write_compact
from pcpo.study.runner import STUDY_FILE, open_study


def write_archive(output: Path, target: Path) -> int:
    """Write the study file and every finished cell's results to `target`, floats with six digits; returns how many.

    Cells that `target` has already, and this study has not finished, stay; so does what it has of other models and
    rewards at matched reward. Raises RunFolderError when `output` holds no study or `target` is the same folder.
    """
    if output.resolve() == target.resolve():
        raise RunFolderError("is the study's own folder", where=str(target), fix="name another folder")
    cells = open_study(output)[1]
    write_text_atomic(target / STUDY_FILE, (output / STUDY_FILE).read_text("utf-8"))
    finished = [(cell, results) for cell in cells if (results := read_results(cell)) is not None]
    for cell, results in finished:
        config = cell.config.model_dump(mode="json")
        config["run"]["output"] = None  # a place on this machine
        content = rounded({**results, "config": config})
        kept = target / "cells" / cell.name / RESULTS
        if not _holds(kept, content):
            write_compact(kept, content)
    if matched := read_matched(output / REPORT):
        write_json_atomic(target / REPORT / MATCHED, read_matched(target / REPORT) | rounded(matched))
    return len(finished)


def _holds(path: Path, content: dict[str, Any]) -> bool:
    """Whether the file says that already, perhaps without fields that came later: it is then left as it is."""
    try:
        return rounded(parse_results(path)) == content
    except RunFolderError:
        return False
