"""Deterministic pictures from a model or a finished run, as `pcpo sample` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pcpo.data.images import contact_sheet, save_png
from pcpo.data.prompts import Prompt
from pcpo.errors import RunFolderError
from pcpo.models.base import Adapter
from pcpo.models.loading import load_adapter
from pcpo.models.lora import load_tuned
from pcpo.samplers import make_sampler
from pcpo.trainer.collect import Request, calls, sample_pictures
from pcpo.trainer.configfile import load_config
from pcpo.trainer.step import Policy


def load_for_sampling(source: str) -> Adapter:
    """The adapter of a run folder (its base model with what was tuned), or of any model that `load_adapter` takes."""
    run = Path(source)
    if not (run / "config.yaml").is_file():
        return load_adapter(source)
    config = load_config(run / "config.yaml")
    adapter = load_adapter(
        config.model.path,
        resolution=config.model.resolution,
        max_sequence_length=config.model.max_sequence_length,
    )
    if not load_tuned(adapter, run, config.model.tune):
        raise RunFolderError("holds no tuned weights yet", where=source, fix="finish the run with --resume")
    return adapter


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
    """Write `count` pictures per prompt as PNG into `output` and return the contact sheet's path.

    Sampling is deterministic (DDIM with eta 0, or the flow ODE); a picture depends on (seed, prompt, its number) only.
    """
    grid = adapter.grid(steps)
    sampler = make_sampler("ode")
    index = torch.arange(len(prompts)).repeat_interleave(count)
    numbers = [n % count for n in range(len(index))]
    request = Request(list(prompts), index, numbers, numbers, seed)
    cond = adapter.encode([p.text for p in prompts])
    policy = Policy(adapter, grid, guidance_scale)
    parts = calls(policy, request, cond, batch, lambda done: None)
    pictures = sample_pictures(parts, sampler, sampler.stats(grid))
    output.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        save_png(picture, output / f"{number:04d}.png")
    sheet = output / "sheet.png"
    save_png(contact_sheet(pictures, columns=max(count, 8 // count * count)), sheet)
    return sheet
