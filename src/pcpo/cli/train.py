"""`pcpo train`: tune a model on a reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def train(
    source: Annotated[str, typer.Argument(help="a preset (pcpo presets lists them) or a YAML file")] = "demo",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="change one setting, for instance optim.learning_rate=1e-4",
        ),
    ] = None,
    memory_preset: Annotated[
        str | None,
        typer.Option("--memory-preset", metavar="NAME", help="lay the model's settings for 12gb, 16gb, ... on it"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="run folder", show_default="runs/NAME-SEED")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="random seed", show_default="the preset's")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the output folder")] = False,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-change", metavar="KEY", help="with --resume: this setting, or section, may differ from the run's"
        ),
    ] = None,
    launch: Annotated[
        Path | None,
        typer.Option("--launch", metavar="FILE", help="train in the processes that this accelerate file names"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="warnings only")] = False,
) -> None:
    """Tune a model on a reward: rollouts, rewards, updates, evaluations, and a report.html in the run folder.

    Every setting of a preset can be changed with --set; `pcpo presets NAME` prints them all with their meaning.
    """
    from pcpo.trainer.configfile import load_config

    settings = list(overrides or [])
    if output is not None:
        settings.append(f"run.output={json.dumps(str(output))}")  # a JSON string is a YAML string
    if seed is not None:
        settings.append(f"run.seed={seed}")
    config = load_config(source, settings, memory_preset)

    if launch is not None:
        from pcpo.cli.launch import launch as start

        arguments = [source, *(part for setting in settings for part in ("--set", setting))]
        arguments += ["--memory-preset", memory_preset] if memory_preset else []
        arguments += [part for key in allow_change or () for part in ("--allow-change", key)]
        raise typer.Exit(start(launch, arguments + ["--resume"] * resume + ["--quiet"] * quiet))

    from pcpo.models.folders import EMBEDDED
    from pcpo.trainer.loop import PCPOTrainer

    if config.model.path not in EMBEDDED:  # those fit, and load in less than the check takes
        from pcpo.plan.precheck import check_model

        check_model(config)

    trainer = PCPOTrainer(config=config, resume=resume, quiet=quiet, allow_change=allow_change or ())

    from pcpo.observe.report import write_report

    summary = trainer.train()
    trainer.runtime.close()
    if not trainer.is_main:
        return
    report = write_report(summary.output)
    trainer.console.summary(
        reward_before=summary.reward_before,
        reward_after=summary.reward_after,
        iterations=summary.iterations,
        seconds=summary.seconds,
        output=summary.output,
        report=report,
    )
