"""`pcpo plan`: what a run needs, and what to change where it does not fit."""

from __future__ import annotations

from typing import Annotated

import typer


def plan(
    source: Annotated[str, typer.Argument(help="a preset or a YAML file")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="change one setting")
    ] = None,
    memory_preset: Annotated[
        str | None,
        typer.Option("--memory-preset", metavar="NAME", help="lay the model's settings for 12gb, 16gb, ... on it"),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option("--memory", "-m", metavar="GiB", min=0.1, help="of the device", show_default="this machine's"),
    ] = None,
    run_probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="load the model and time a few calls; or read its header only")
    ] = True,
) -> None:
    """Say what a run needs: pictures, model calls, memory by part, time; and what to change where it does not fit.

    With --no-probe nothing is loaded: memory is counted on a model without weights. Plan for another machine with
    --no-probe --memory GiB --set run.device=cuda. Exit code 1 where the run does not fit.
    """
    from pcpo.trainer.configfile import load_config

    config = load_config(source, overrides or [], memory_preset)

    from pcpo.plan.command import make_plan, show

    made = make_plan(config, memory=memory, run_probe=run_probe)
    show(made, typer.echo)
    if made.fits is False:
        raise typer.Exit(1)
