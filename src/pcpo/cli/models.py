"""`pcpo models`: list the embedded models and the families, and check an adapter on one of its models."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="List the embedded models and the pipeline families; `pcpo models check PATH` tries an adapter.",
    invoke_without_command=True,
)


@app.callback()
def models(context: typer.Context) -> None:
    """List the embedded models and the pipeline families; `pcpo models check PATH` tries an adapter."""
    if context.invoked_subcommand is not None:
        return
    from pcpo.cli.listing import print_table
    from pcpo.models.folders import EMBEDDED
    from pcpo.models.loading import FAMILIES

    print_table(EMBEDDED.items())
    typer.echo(f"\nAny folder or hub id of: {', '.join(FAMILIES)}")


@app.command("check")
def check(
    path: Annotated[str, typer.Argument(help="embedded name, pipeline folder or hub id")],
    resolution: Annotated[int | None, typer.Option(help="picture side in pixels; left out: the model's own")] = None,
    max_sequence_length: Annotated[int | None, typer.Option(help="text tokens; left out: the pipeline's")] = None,
    steps: Annotated[int, typer.Option(min=2, help="sampling steps")] = 4,
) -> None:
    """Compare an adapter with the pipeline that it wraps and name what is wrong; exit code 4 when something is."""
    from pcpo.errors import ModelError
    from pcpo.models.checker import check_adapter
    from pcpo.models.loading import load_adapter

    adapter = load_adapter(path, resolution=resolution, max_sequence_length=max_sequence_length)
    findings = check_adapter(adapter, steps=steps)
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise ModelError(f"{len(findings)} finding{'s' if len(findings) > 1 else ''}", where=f"model {path}")
    typer.echo("nothing found")
