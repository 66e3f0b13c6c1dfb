"""`pcpo presets`: what there is to choose from, and how lists are printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer


def presets(
    name: Annotated[str | None, typer.Argument(help="print this preset's settings, resolved, as YAML")] = None,
) -> None:
    """List the presets, or print one with every setting and its meaning."""
    from pcpo.trainer.configfile import describe, load_config, preset_names

    if name is not None:
        typer.echo(describe(load_config(name)), nl=False)
        return
    rows = []
    for preset in preset_names():
        config = load_config(preset)
        rows.append(
            (
                preset,
                config.model.path,
                f"{config.sampler.name}, {config.sampler.steps} steps",
                f"credit {config.credit.schedule}"
                + ("" if config.credit.schedule == "native" else f" by {config.credit.apply}"),
                f"{config.objective.name}, {config.advantage.name}",
            )
        )
    print_table(rows)


def print_table(rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows as aligned columns."""
    table = list(rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
