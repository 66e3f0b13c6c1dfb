"""`pcpo eval`: measure pictures of runs, models and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcpo.cli.options import Device, Precision, Resolution


def evaluate(
    sources: Annotated[list[str], typer.Argument(help="run folders, models or folders of pictures")],
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", "-r", help="measure distances to this source; base: a run's own base model"),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="prompts file or embedded set", show_default="the first run's, or common50")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="with --matched: also on these prompts, less the training prompts")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="pictures per prompt")] = 4,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="denoising steps", show_default="the first run's, or 20")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", "-g", min=0, help="guidance", show_default="the first run's, or 5"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the noises")] = 0,
    features: Annotated[
        list[str] | None,
        typer.Option("--features", "-f", help="feature set; may be repeated", show_default="emoji_clip"),
    ] = None,
    rewards: Annotated[
        list[str] | None,
        typer.Option("--rewards", help="reward; may be repeated", show_default="the runs' own, if built in"),
    ] = None,
    matched: Annotated[
        float | None, typer.Option(help="compare runs at their first saved weights that reach this reward")
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    resolution: Resolution = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="also write a JSON file; must be new")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no tables")] = False,
) -> None:
    """Sample every source with the same prompts and noises, and measure the pictures.

    Frechet and kernel distance, diversity, text alignment, rewards, and monitors of reward hacking. A folder of
    pictures is measured as it is. A reward with options is YAML: '{name: clip_score, options: {model: FOLDER}}'.
    """
    from pcpo.errors import RunFolderError

    if output is not None and output.exists():
        raise RunFolderError("exists already", where=str(output), fix="choose another --output")

    from pcpo.evaluation.command import Request, run
    from pcpo.evaluation.sampling import Placement

    request = Request(
        sources=sources,
        references=reference,
        prompts=prompts,
        held_out=held_out,
        count=count,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        features=features or ["emoji_clip"],
        rewards=rewards,
        target=matched,
        output=output,
        quiet=quiet,
        placement=Placement(device, precision, resolution),
    )
    run(request)
