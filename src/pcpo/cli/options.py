"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto (the accelerator if any), cpu, cuda, mps")]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="NAME", help="fp32, fp16 or bf16", show_default="the run's, or fp32"),
]
Resolution = Annotated[
    int | None,
    typer.Option("--resolution", metavar="PIXELS", min=8, help="picture side", show_default="the run's or model's own"),
]
