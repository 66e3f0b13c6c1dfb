"""Load a pipeline by embedded name, folder or hub id and give it its adapter."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from pcpo.errors import ModelError
from pcpo.models.base import Adapter
from pcpo.models.folders import ModelHeader, read_header, resolve

FAMILIES = {
    "StableDiffusionPipeline": "pcpo.models.stable_diffusion:StableDiffusionAdapter",
    "StableDiffusionXLPipeline": "pcpo.models.stable_diffusion_xl:StableDiffusionXLAdapter",
    "StableDiffusion3Pipeline": "pcpo.models.stable_diffusion3:StableDiffusion3Adapter",
    "FluxPipeline": "pcpo.models.flux:FluxAdapter",
    "SanaPipeline": "pcpo.models.sana:SanaAdapter",
    "QwenImagePipeline": "pcpo.models.qwen_image:QwenImageAdapter",
}


def adapter_class(header: ModelHeader) -> type[Adapter]:
    """The adapter class of a pipeline. Raises ModelError for a family without one."""
    if header.pipeline not in FAMILIES:
        raise ModelError(
            f"{header.pipeline} has no adapter (there is one for {', '.join(FAMILIES)})",
            where=f"model {header.path}",
        )
    module, name = FAMILIES[header.pipeline].split(":")
    return getattr(importlib.import_module(module), name)


def load_pipeline(path: str) -> Any:
    """A diffusers pipeline in float32, from safetensors only. Raises ModelError."""
    # its advice to install torchvision is not for our users: pictures go through Pillow
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    import transformers
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    header = read_header(path)
    # diffusers asks for a T5 even where the index says that there is none, unless it is told None
    extra: dict[str, Any] = dict.fromkeys(header.absent)
    if header.pipeline == "StableDiffusionPipeline":
        extra["safety_checker"] = None
    diffusers_logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        pipe = DiffusionPipeline.from_pretrained(resolve(path), dtype=torch.float32, use_safetensors=True, **extra)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"diffusers cannot load it: {reason}", where=f"model {path}") from error
    for name, part in pipe.components.items():
        absent = [n for n, p in part.named_parameters() if p.is_meta] if isinstance(part, nn.Module) else []
        if absent:
            raise ModelError(
                f"{name} lacks {len(absent)} of its weights, {absent[0]} among them",
                where=f"model {path}",
                fix="save the pipeline again",
            )
    return pipe


def wrap_pipeline(
    pipe: Any,
    device: torch.device | str | None = None,
    resolution: int | None = None,
    max_sequence_length: int | None = None,
) -> Adapter:
    """The adapter of a pipeline that is already loaded, where it is unless a device is given."""
    cls = adapter_class(ModelHeader("pipeline object", type(pipe).__name__, {}))
    return cls(pipe, device if device is not None else pipe.device, resolution, max_sequence_length)


def load_adapter(
    path: str,
    device: torch.device | str = "cpu",
    resolution: int | None = None,
    max_sequence_length: int | None = None,
) -> Adapter:
    """Load a pipeline and wrap it. The header is read first, so a wrong family is refused before any weight."""
    cls = adapter_class(read_header(path))
    return cls(load_pipeline(path), device, resolution, max_sequence_length)
