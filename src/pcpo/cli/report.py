"""`pcpo report`: write a run's report again, or one page about several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="run folders, or a quoted pattern: 'runs/x-*'")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="the page", show_default="RUN/report.html; of several runs: runs.html"),
    ] = None,
) -> None:
    """Write a run's report from its events and pictures, or compare several runs: one offline file.

    Runs that differ in nothing but the seed become one group: means with 95 % bands, settings that differ, credit per
    step and final pictures side by side.
    """
    from pcpo.observe.groups import find_runs

    folders = find_runs(runs)
    if len(folders) == 1:
        from pcpo.observe.report import write_report

        typer.echo(write_report(folders[0], output))
    else:
        from pcpo.observe.runs_page import write_runs

        typer.echo(write_runs(folders, output or Path("runs.html")))
