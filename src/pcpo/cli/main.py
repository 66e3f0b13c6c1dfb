"""The `pcpo` command: one verb per file; heavy imports happen inside the verbs, so help is instant."""

from __future__ import annotations

import gc
import sys

import typer

from pcpo import __version__
from pcpo.cli import (
    compare,
    evaluate,
    export,
    listing,
    models,
    plan,
    profile,
    report,
    rewards,
    sample,
    study,
    train,
    validate,
)
from pcpo.errors import Interrupted, PCPOError

app = typer.Typer(
    name="pcpo",
    help="Align text-to-image diffusion and flow models with rewards by proportionate credit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("train")(train.train)
app.command("validate")(validate.validate)
app.command("plan")(plan.plan)
app.command("sample")(sample.sample)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("profile")(profile.profile)
app.command("presets")(listing.presets)
app.add_typer(models.app, name="models")
app.add_typer(rewards.app, name="rewards")
app.add_typer(study.app, name="study")


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Align text-to-image diffusion and flow models with rewards by proportionate credit."""


def main() -> None:
    """Entry point: errors that a user can mend become one line and an exit code of their own."""
    try:
        app()
    except (PCPOError, Interrupted) as error:
        typer.echo(f"pcpo: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)
    finally:
        gc.freeze()  # the process ends here: looking for garbage once more would take a second with torch loaded


if __name__ == "__main__":
    main()
