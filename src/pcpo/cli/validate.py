"""`pcpo validate`: what can be refused without loading a weight."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Annotated

import typer


def validate(
    source: Annotated[str, typer.Argument(help="a preset or a YAML file")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="change one setting")
    ] = None,
    memory_preset: Annotated[
        str | None,
        typer.Option("--memory-preset", metavar="NAME", help="lay the model's settings for 12gb, 16gb, ... on it"),
    ] = None,
) -> None:
    """Check settings, prompts, model, rewards and output folder without loading a model.

    The model is made from its configuration files, without weights: targets of a LoRA, resolution and time grid are
    checked on it. Of reward models the files are looked for.
    """
    with _without_collections():
        _check(source, overrides or [], memory_preset)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Inside, no garbage is collected: that is a quarter of what importing torch and diffusers costs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check(source: str, overrides: list[str], memory_preset: str | None) -> None:
    from pcpo.models.device import find_device
    from pcpo.models.folders import read_header
    from pcpo.plan.precheck import check_model
    from pcpo.trainer.configfile import load_config
    from pcpo.trainer.inputs import check_rewards, prompt_sets
    from pcpo.trainer.runfolder import check_output

    config = load_config(source, overrides, memory_preset)
    find_device(config.run.device)
    typer.echo("settings  ok")
    prompts, evaluated = prompt_sets(config)
    typer.echo(f"prompts   ok, {len(prompts)}" + (f", {len(evaluated)} held out" if config.held_out else ""))
    header, trained = read_header(config.model.path), check_model(config).trained(0)
    typer.echo(f"model     ok, {header.pipeline}, {len(trained)} of {config.sampler.steps} steps trained")
    check_rewards(config, [*prompts, *evaluated])
    typer.echo(f"rewards   ok, {', '.join(part.name for part in config.reward)}")
    typer.echo(f"output    ok, {check_output(config, resume=False)}")
