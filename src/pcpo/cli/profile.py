"""`pcpo profile`: where the time of an iteration goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def profile(
    source: Annotated[str, typer.Argument(help="a preset (pcpo presets lists them) or a YAML file")] = "demo",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="change one setting")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Chrome trace to write; must not exist")] = Path(
        "trace.json"
    ),
) -> None:
    """Profile one training iteration, after one to warm up: a table, and a Chrome trace for ui.perfetto.dev.

    Nothing of the run is kept but the trace.
    """
    import tempfile

    from pcpo.errors import RunFolderError
    from pcpo.trainer.configfile import load_config

    if output.exists():
        raise RunFolderError("exists already", where=str(output), fix="choose another --output")
    with tempfile.TemporaryDirectory() as folder:
        own = [f"run.output={json.dumps(folder + '/run')}", "run.tracker=none"]
        config = load_config(source, [*(overrides or []), *own])

        from pcpo.cli.listing import print_table
        from pcpo.observe.profile import profile_iteration
        from pcpo.trainer.loop import PCPOTrainer

        found = profile_iteration(PCPOTrainer(config=config, quiet=True), output)
    rows = [(name, str(calls or ""), f"{seconds:.3f} s", f"{share:.1%}") for name, calls, seconds, share in found.rows]
    print_table([("part", "calls", "time", "share"), *rows])
    typer.echo("\nmost expensive operators, by themselves:")
    print_table([(name, str(calls), f"{seconds:.3f} s") for name, calls, seconds in found.operators])
    typer.echo(f"\n{found.trace}")
