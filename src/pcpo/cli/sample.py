"""`pcpo sample`: pictures from a model or a run, with fixed noises."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcpo.cli.options import Device, Precision, Resolution


def sample(
    source: Annotated[str, typer.Argument(help="run folder, RUN@ITERATION, embedded model, pipeline folder or hub id")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="a prompt; may be repeated")] = None,
    prompts: Annotated[str | None, typer.Option(help="prompts file or embedded set")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="pictures per prompt")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="denoising steps")] = 20,
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", "-g", min=0, help="classifier-free guidance; 1 or less: off")
    ] = 5.0,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", "-a", metavar="RUN=WEIGHT", help="add a run's tuning so many times; may be repeated"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the noises")] = 0,
    device: Device = "auto",
    precision: Precision = None,
    resolution: Resolution = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="folder for the pictures; must be new or empty")
    ] = Path("samples"),
) -> None:
    """Sample pictures deterministically (DDIM or ODE), as the pipeline itself does, and a contact sheet of them.

    With --adapter: Implicit Reward Guidance, f_ref + sum of WEIGHT (f_RUN - f_ref); a run as the source then stands
    for the model that it was tuned from.
    """
    from pcpo.data.prompts import load_prompts
    from pcpo.errors import PromptError, RunFolderError

    if not prompt and not prompts:
        raise PromptError("no prompts", where="pcpo sample", fix="give --prompt TEXT or --prompts FILE")
    wanted = [*(load_prompts(prompt) if prompt else []), *(load_prompts(prompts) if prompts else [])]
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError("is not an empty folder", where=str(output), fix="choose another --output")

    from pcpo.evaluation.guidance import load_guidance, parse_term
    from pcpo.evaluation.sampling import Placement, load_for_sampling, sample_set, write_pictures
    from pcpo.trainer.step import Policy

    placement = Placement(device, precision, resolution)
    terms = [parse_term(text) for text in adapters or []]
    if terms:
        guidance = load_guidance(source, terms, placement)
        adapter, make_policy = guidance.adapter, guidance.make_policy
    else:
        adapter, make_policy = load_for_sampling(source, placement), Policy
    pictures = sample_set(
        adapter,
        wanted,
        count=count,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        make_policy=make_policy,
    )
    typer.echo(write_pictures(pictures, wanted, output))
