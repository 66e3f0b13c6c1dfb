"""What the worker can do with a hostile file: one short function for each way in."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

MODULES = (
    "pcpo.cli.main",
    "pcpo.evaluation.command",
    "pcpo.evaluation.folder",
    "pcpo.evaluation.sampling",
    "pcpo.evaluation.side_by_side",
    "pcpo.export.run",
    "pcpo.models.checker",
    "pcpo.models.stable_diffusion",
    "pcpo.models.stable_diffusion3",
    "pcpo.observe.profile",
    "pcpo.observe.report",
    "pcpo.plan.command",
    "pcpo.plan.precheck",
    "pcpo.rewards.remote.server",
    "pcpo.study.report",
    "pcpo.study.runner",
    "pcpo.study.status",
    "pcpo.trainer.loop",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "huggingface_hub.repocard",
    "peft",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.WebPImagePlugin",
)


def preload() -> None:
    """Load now what the jobs need, so that a fork starts with it."""
    import torch

    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)


def command(*arguments: str) -> object:
    """`pcpo ...`, with its exceptions as they are."""
    from pcpo.cli.main import app

    return app(list(arguments), standalone_mode=False)


def command_in(folder: str, *arguments: str) -> object:
    """`pcpo ...` in a folder."""
    os.chdir(folder)
    return command(*arguments)


def image(path: str) -> object:
    """A picture file."""
    from pcpo.data.images import load_image

    return tuple(load_image(path).shape)


def prompts(path: str) -> object:
    """A prompts file."""
    from pcpo.data.prompts import load_prompts

    return len(load_prompts(Path(path)))


def config(path: str) -> object:
    """A configuration file."""
    from pcpo.trainer.configfile import load_config

    return load_config(Path(path)).name


def study(path: str) -> object:
    """A study file and its cells."""
    from pcpo.study.plan import load_study, make_cells

    return [str(cell.folder) for cell in make_cells(load_study(path), Path("output"))]


def reply(path: str) -> object:
    """What a reward server says of two pictures."""
    from pcpo.rewards.remote.wire import decode_reply

    return decode_reply(Path(path).read_bytes(), 2).values.tolist()


def request(path: str) -> object:
    """What a client asks a reward server."""
    from pcpo.rewards.remote.wire import decode_request

    return tuple(decode_request(Path(path).read_bytes())[0].shape)


def checkpoint(folder: str) -> object:
    """A checkpoint folder."""
    from pcpo.trainer.checkpoint import load

    load(Path(folder))
    return "loaded"


def header(path: str) -> object:
    """A pipeline's index."""
    from pcpo.models.folders import read_header

    return read_header(path).pipeline


def model(path: str) -> object:
    """A whole pipeline."""
    from pcpo.models.loading import load_adapter

    return load_adapter(path).path


def pictures(folder: str) -> object:
    """A folder of pictures, as `pcpo eval` reads it."""
    from pcpo.evaluation.folder import read_folder

    return len(read_folder(Path(folder)).images)


def results(folder: str) -> object:
    """A study's folder: its status."""
    from pcpo.study.status import describe

    return describe(Path(folder))


FUNCTIONS = (
    command,
    command_in,
    image,
    prompts,
    config,
    study,
    reply,
    request,
    checkpoint,
    header,
    model,
    pictures,
    results,
)
JOBS: dict[str, Callable[..., object]] = {job.__name__: job for job in FUNCTIONS}
