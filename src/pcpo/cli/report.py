"""`pcpo report`: write a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="run folder")]) -> None:
    """Write report.html in a run folder from its events and pictures: one offline file."""
    from pcpo.observe.report import write_report

    typer.echo(write_report(run))
