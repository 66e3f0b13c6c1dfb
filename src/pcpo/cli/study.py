"""`pcpo study`: run a study's cells, look how far it is, and report what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Compare methods over models, rewards and seeds.", no_args_is_help=True)


@app.callback()
def study() -> None:
    """Compare methods over models, rewards and seeds: every cell is an ordinary run."""


@app.command("run")
def run(
    file: Annotated[Path, typer.Argument(help="study file (YAML)")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the study's folder; runners may share it")],
    shard_name: Annotated[
        str, typer.Option("--shard-name", help="label of this runner in claims and status", show_default="process id")
    ] = "",
    reuse: Annotated[
        list[Path] | None,
        typer.Option("--reuse", help="a study's folder or archive: cells with the same settings take over its results"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="AXIS=VALUES", help="these cells only, such as seed=0,1; may be repeated"),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run cells that failed once more")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="failures only")] = False,
) -> None:
    """Run what is left of a study: finished cells are skipped, half-done ones resumed, those of other runners left.

    Start it several times with the same output, on one machine or on several that share the folder, to run cells side
    by side. Exit code 1 when a cell failed.
    """
    from pcpo.errors import PCPOError
    from pcpo.study.runner import run_study

    outcome = run_study(
        file, output, shard=shard_name, reuse=reuse or [], only=only or [], retry_failed=retry_failed, quiet=quiet
    )
    if outcome.failed:
        raise PCPOError(
            f"{len(outcome.failed)} cells failed, the first is {outcome.failed[0]}",
            where=str(output / "failures"),
            fix="pcpo study run --retry-failed runs them again",
        )


@app.command("status")
def status(output: Annotated[Path, typer.Argument(help="the study's folder")]) -> None:
    """How far a study is: cells by state, who runs what, and what failed."""
    from pcpo.study.status import describe

    typer.echo(describe(output))


@app.command("report")
def report(
    output: Annotated[Path, typer.Argument(help="the study's folder")],
    baseline: Annotated[
        str | None, typer.Option(help="compare with this arm, in report-BASELINE/", show_default="the study's baseline")
    ] = None,
) -> None:
    """Write figures, tables and numbers of the finished cells to the folder's report/."""
    from pcpo.study.report import write_study_report

    typer.echo(write_study_report(output, baseline))


@app.command("archive")
def archive(
    output: Annotated[Path, typer.Argument(help="the study's folder")],
    target: Annotated[Path, typer.Argument(help="folder to write to; cells that it has already stay")],
) -> None:
    """Write the study file and the finished cells' results, some 20 kB each: to keep, to share, to go on from.

    `pcpo study report` reads an archive, and `pcpo study run --reuse` takes its results over.
    """
    from pcpo.study.archive import write_archive

    typer.echo(f"{write_archive(output, target)} finished cells are in {target}")


@app.command("matched")
def matched(
    output: Annotated[Path, typer.Argument(help="the study's folder")],
    pictures: Annotated[int, typer.Option(min=2, help="pictures in each set, spread over its prompts")] = 200,
    held_out: Annotated[
        str | None, typer.Option(help="prompts apart from the training prompts", show_default="heldout50, if embedded")
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option("--features", "-f", help="feature set; may be repeated", show_default="emoji_clip"),
    ] = None,
    share: Annotated[float, typer.Option(help="of each arm's runs that have to reach the reward")] = 1.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
) -> None:
    """Measure quality at the highest reward that the runs of every arm reach, for the report.

    Needs evaluation.save=true in the study. Cells that were measured before at the same weights are not measured again.
    """
    from pcpo.study.matched import Options, match_study

    options = Options(pictures, held_out, tuple(features or ["emoji_clip"]), share)
    typer.echo(match_study(output, options, quiet))
