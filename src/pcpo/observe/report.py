"""One self-contained page about a run: report.html, from events.jsonl and the evaluation pictures."""

from __future__ import annotations

from pathlib import Path

from pcpo.data.files import write_bytes_atomic
from pcpo.errors import RunFolderError
from pcpo.observe import early, grid, head, sections, tables
from pcpo.observe.document import document
from pcpo.observe.events import read_events
from pcpo.observe.markup import element
from pcpo.observe.pictures import Gallery, gallery
from pcpo.observe.records import RunLog


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write `output`, or run_dir/report.html, and return its path: a page that loads nothing and needs no server.

    Parts that the log lacks are replaced by notes. Raises RunFolderError when the log is missing or
    malformed, or the report cannot be written.
    """
    run_dir = Path(run_dir)
    log = read_events(run_dir / "events.jsonl")
    path = page_path(output) if output is not None else run_dir / "report.html"
    write_bytes_atomic(path, page(log, gallery(run_dir, log)).encode("utf-8"))
    return path


def page_path(output: str | Path) -> Path:
    """Where a page may be written; RunFolderError for what is no .html file."""
    path = Path(output)
    if path.suffix != ".html" or path.is_dir():
        raise RunFolderError("is no page", where=str(path), fix="let --output end in .html")
    return path


def page(log: RunLog, shown: Gallery | None) -> str:
    """The whole document."""
    name = log.run_start.run_name if log.run_start and log.run_start.run_name else "run"
    return document(
        f"PCPO report: {name}",
        head.head(log),
        element(
            "main",
            sections.pictures(shown),
            sections.reward(log),
            early.early_warning(log),
            grid.grid(shown),
            sections.credit(log),
            sections.clipping(log),
            sections.health(log),
            tables.warnings([*log.warnings, *(shown.problems if shown else [])]),
            tables.settings(log),
        ),
        element("footer", element("p", "Written by pcpo from this run's events.jsonl.")),
        script="report.js",
    )
