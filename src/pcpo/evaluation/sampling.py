"""Deterministic pictures from a model or a finished run, as `pcpo sample` and `pcpo eval` make them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pcpo.data.files import write_text_atomic
from pcpo.data.images import contact_sheet, save_png
from pcpo.data.prompts import Prompt
from pcpo.errors import RunFolderError
from pcpo.evaluation.iterations import load_iteration, split_source
from pcpo.models.base import Adapter
from pcpo.models.device import find_device, find_precision
from pcpo.models.folders import same_model
from pcpo.models.loading import load_adapter
from pcpo.models.lora import load_tuned
from pcpo.samplers import make_sampler
from pcpo.trainer.collect import Request, calls, decode, sample_latents
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import load_config
from pcpo.trainer.step import Policy
from pcpo.types import Grid

METADATA_FILE = "metadata.jsonl"


def run_config(source: str | Path) -> Config | None:
    """The configuration of a run folder; None when `source` is not one."""
    path = Path(source) / "config.yaml"
    return load_config(path) if path.is_file() else None


@dataclass(frozen=True)
class Placement:
    """Where a model computes, in what precision and at which picture size, when it is sampled.

    device     auto (the accelerator, if there is one and the run was not told to use the CPU), cpu, cuda or mps
    precision  fp32, fp16 or bf16; None: the one that the run was trained in, fp32 for a model that is no run
    resolution picture side in pixels; None: the run's, or the model's own
    runs       runs beside it: a model that one of them was tuned from is loaded as that run loads it
    """

    device: str = "auto"
    precision: str | None = None
    resolution: int | None = None
    runs: tuple[Config, ...] = ()

    def tuned_from(self, path: str) -> Config | None:
        """The first of the runs that was tuned from a model; None for a model of its own."""
        return next((run for run in self.runs if same_model(run.model.path, path)), None)

    def load(self, path: str, config: Config | None = None) -> Adapter:
        """The base model of a run, or of none, placed so. Raises ConfigError for a device that is not there."""
        config = config or self.tuned_from(path)
        run = config.run if config else None
        device = "cpu" if run and run.device == "cpu" and self.device == "auto" else self.device
        precision = self.precision or (run.precision if run else "fp32")
        return load_adapter(
            path,
            find_device(device, "--device"),
            self.resolution or (config.model.resolution if config else None),
            config.model.max_sequence_length if config else None,
            dtype=find_precision(precision, "--precision"),
            full=config is not None and config.model.tune == "full",
            offload=run is not None and run.offload != "none",
        )


DEFAULT = Placement()


def load_base(config: Config, placement: Placement = DEFAULT) -> Adapter:
    """The adapter of the model that a run tunes, as it was before."""
    return placement.load(config.model.path, config)


def load_for_sampling(source: str, placement: Placement = DEFAULT) -> Adapter:
    """The adapter of a run (its base model with what was tuned), or of any model that `load_adapter` takes.

    `RUN@ITERATION` is the run as it was at a checkpoint that it keeps.
    """
    folder, iteration = split_source(source)
    config = run_config(folder)
    if config is None:
        return placement.load(source)
    adapter = load_base(config, placement)
    load_run_weights(adapter, Path(folder), config, iteration)
    return adapter


def load_run(run: Path, config: Config, weights: Path | None = None, placement: Placement = DEFAULT) -> Adapter:
    """A run's base model with the tuned weights that lie in `weights` (None: the run folder, so the last ones).

    Raises RunFolderError when there are none.
    """
    adapter = load_base(config, placement)
    load_run_weights(adapter, weights or run, config)
    return adapter


def load_run_weights(
    adapter: Adapter, run: Path, config: Config, iteration: int | None = None, name: str = "default"
) -> None:
    """Put a run's tuned weights on its base model, the last ones or those of an iteration; a LoRA as `name`.

    Raises RunFolderError when there are none.
    """
    if iteration is not None:
        load_iteration(adapter, run, iteration, config.model, name)
    elif not load_tuned(adapter, run, config.model.tune, name):
        raise RunFolderError("holds no tuned weights yet", where=str(run), fix="finish the run with --resume")


def sample_set(
    adapter: Adapter,
    prompts: Sequence[Prompt],
    *,
    count: int,
    steps: int,
    guidance_scale: float,
    seed: int,
    batch: int = 16,
    advance: Callable[[int], None] = lambda done: None,
    make_policy: Callable[[Adapter, Grid, float], Policy] = Policy,
) -> Tensor:
    """`count` pictures per prompt, prompt-major: uint8 [P * count, 3, H, W].

    Sampling is deterministic (DDIM with eta 0, or the flow ODE); a picture depends on (seed, prompt, its number) only,
    so the pictures of two models with the same arguments pair up noise by noise. advance(n) is called after each
    step of n pictures. make_policy(adapter, grid, guidance_scale) may give another prediction than the adapter's.
    """
    grid = adapter.grid(steps)
    sampler = make_sampler("ode")
    index = torch.arange(len(prompts)).repeat_interleave(count)
    numbers = [n % count for n in range(len(index))]
    request = Request(list(prompts), index, numbers, numbers, seed)
    cond = adapter.encode([p.text for p in prompts])
    policy = make_policy(adapter, grid, guidance_scale)
    latents = sample_latents(calls(policy, request, cond, batch, advance), sampler, sampler.stats(grid))
    return decode(adapter, latents, batch)


def write_pictures(pictures: Tensor, prompts: Sequence[Prompt], output: Path) -> Path:
    """Write prompt-major pictures as PNG with their prompts beside them; returns the contact sheet's path.

    metadata.jsonl has one line per picture, {"file_name", "prompt"}: the convention of `datasets`' image folders.
    """
    count = len(pictures) // len(prompts)
    output.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, picture in enumerate(pictures):
        name = f"{number:04d}.png"
        save_png(picture, output / name)
        lines.append(json.dumps({"file_name": name, "prompt": prompts[number // count].text}) + "\n")
    write_text_atomic(output / METADATA_FILE, "".join(lines))
    sheet = output / "sheet.png"
    save_png(contact_sheet(pictures, columns=max(count, 8 // count * count)), sheet)
    return sheet


def sample_images(
    adapter: Adapter,
    prompts: Sequence[Prompt],
    *,
    count: int,
    steps: int,
    guidance_scale: float,
    seed: int,
    output: Path,
    batch: int = 16,
) -> Path:
    """`sample_set`, written by `write_pictures` into `output`; returns the contact sheet's path."""
    pictures = sample_set(
        adapter, prompts, count=count, steps=steps, guidance_scale=guidance_scale, seed=seed, batch=batch
    )
    return write_pictures(pictures, prompts, output)
