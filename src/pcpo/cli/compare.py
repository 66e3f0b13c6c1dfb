"""`pcpo compare`: models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcpo.cli.options import Device, Precision, Resolution


def compare(
    models: Annotated[list[str], typer.Argument(help="two or more: run folder, RUN@ITERATION, model; the base first")],
    prompts: Annotated[str, typer.Option(help="prompts file or embedded set")] = "common50",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="pictures per prompt")] = 1,
    limit: Annotated[int, typer.Option(min=1, help="at most this many prompts, from the top")] = 16,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="denoising steps")] = 20,
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", "-g", min=0, help="classifier-free guidance; 1 or less: off")
    ] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="seed of the noises")] = 0,
    rewards: Annotated[
        list[str] | None, typer.Option("--reward", "-r", metavar="NAME", help="score the pictures; may be repeated")
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    resolution: Resolution = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to make; must not exist")] = Path("comparison"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar")] = False,
) -> None:
    """Sample the same prompts and noises with several models: compare.png, compare.html and compare.json."""
    from pcpo.data.prompts import load_prompts
    from pcpo.errors import RunFolderError

    chosen = load_prompts(prompts)[:limit]
    if output.exists():
        raise RunFolderError("exists already", where=str(output), fix="choose another --output")

    from pcpo.evaluation.sampling import Placement
    from pcpo.evaluation.side_by_side import compare as sample_all
    from pcpo.evaluation.side_by_side import write_comparison
    from pcpo.observe.console import Console
    from pcpo.rewards.registry import load_reward

    loaded = {name.rpartition(":")[2]: load_reward(name) for name in rewards or []}
    with (
        Console(quiet) as console,
        console.task("sampling", len(chosen) * count * steps * len(models)) as advance,
    ):
        result = sample_all(
            models,
            chosen,
            count=count,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            rewards=loaded,
            advance=advance,
            placement=Placement(device, precision, resolution),
        )
    typer.echo(write_comparison(result, output))
