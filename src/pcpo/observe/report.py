"""One self-contained page about a run: report.html, from events.jsonl and the evaluation pictures."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from pcpo.data.files import write_bytes_atomic
from pcpo.observe import head, sections, tables
from pcpo.observe.events import read_events
from pcpo.observe.markup import Safe, element, join
from pcpo.observe.pictures import Gallery, gallery
from pcpo.observe.records import RunLog


def write_report(run_dir: str | Path) -> Path:
    """Write run_dir/report.html and return its path. It loads nothing from elsewhere and needs no server.

    Parts that the log lacks are replaced by notes. Raises RunFolderError when the log is missing or
    malformed, or the report cannot be written.
    """
    run_dir = Path(run_dir)
    log = read_events(run_dir / "events.jsonl")
    path = run_dir / "report.html"
    write_bytes_atomic(path, page(log, gallery(run_dir, log)).encode("utf-8"))
    return path


def page(log: RunLog, shown: Gallery | None) -> str:
    """The whole document."""
    style, script = _package_file("report.css"), _package_file("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    name = log.run_start.run_name if log.run_start and log.run_start.run_name else "run"
    preamble = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"PCPO report: {name}"),
        element("style", style),
    )
    body = element(
        "body",
        head.head(log),
        element(
            "main",
            sections.pictures(shown),
            sections.reward(log),
            sections.credit(log),
            sections.clipping(log),
            sections.health(log),
            tables.warnings([*log.warnings, *(shown.problems if shown else [])]),
            tables.settings(log),
        ),
        element("footer", element("p", "Written by pcpo from this run's events.jsonl.")),
        element("script", script),
    )
    return join((Safe("<!doctype html>\n"), element("html", preamble, body, lang="en")))


def _package_file(name: str) -> Safe:
    return Safe(files("pcpo.observe").joinpath(name).read_text(encoding="utf-8"))


def _hash(content: str) -> str:
    """The policy's source expression for one inline style or script (CSP level 2)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode('utf-8')).digest()).decode('ascii')}'"
