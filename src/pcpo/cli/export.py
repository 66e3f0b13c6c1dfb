"""`pcpo export`: tuned weights for other tools."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pcpo.cli.options import Device, Precision


class Layout(str, Enum):
    """Whose names the weights get."""

    diffusers = "diffusers"
    kohya = "kohya"
    comfy = "comfy"


def export(
    run: Annotated[Path, typer.Argument(help="run folder")],
    layout: Annotated[Layout, typer.Option("--format", "-f", help="whose names the weights get")] = Layout.diffusers,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="folder to make; must not exist", show_default="RUN/export/FORMAT"),
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="a whole pipeline with the LoRA in its weights")] = False,
    device: Device = "auto",
    precision: Precision = None,
) -> None:
    """Write a run's LoRA for diffusers, sd-scripts (kohya) or ComfyUI, or a whole pipeline, with a model card.

    A full fine-tuning is exported as a pipeline. --device and --precision are those of a whole pipeline.
    """
    from pcpo.evaluation.sampling import Placement
    from pcpo.export.run import export_run

    placement = Placement(device, precision)
    typer.echo(export_run(run, layout.value, output, merged=merged, placement=placement))
