"""Load a pipeline by embedded name, folder or hub id and give it its adapter."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from pcpo.errors import ModelError
from pcpo.models.base import Adapter
from pcpo.models.folders import ModelHeader, has_weights, read_header, resolve
from pcpo.models.precision import align, part_dtypes

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


def load_pipeline(
    path: str, dtype: torch.dtype = torch.float32, others: Mapping[str, torch.dtype] | None = None
) -> Any:
    """A diffusers pipeline in `dtype` (`others`: parts that have another), from safetensors only. Raises ModelError."""
    # its advice to install torchvision is not for our users: pictures go through Pillow
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    import transformers
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    header = read_header(path)
    # diffusers asks for a T5 even where the index says that there is none, unless it is told None
    parts: dict[str, Any] = dict.fromkeys(header.absent)
    if header.pipeline == "StableDiffusionPipeline":
        parts["safety_checker"] = None
    dtypes = {"default": dtype, **(others or {})}
    diffusers_logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        parts |= _text_encoders(path, header, dtypes)
        pipe = DiffusionPipeline.from_pretrained(resolve(path), dtype=dtypes, use_safetensors=True, **parts)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"diffusers cannot load it: {reason}", where=f"model {path}") from error
    for name, part in pipe.components.items():
        absent = [n for n, p in part.named_parameters() if p.is_meta] if isinstance(part, nn.Module) else []
        _refuse_missing(path, name, absent)
    return pipe


def _text_encoders(path: str, header: ModelHeader, dtypes: dict[str, torch.dtype]) -> dict[str, nn.Module]:
    """The parts that transformers loads. It fills weights that the files lack with random numbers: refused here."""
    import transformers

    loaded = {}
    for name, (library, class_name) in header.components.items():
        if library != "transformers" or not has_weights(class_name) or name == "safety_checker":
            continue
        cls = getattr(transformers, class_name)
        loaded[name], report = cls.from_pretrained(
            resolve(path),
            subfolder=name,
            dtype=dtypes.get(name, dtypes["default"]),
            use_safetensors=True,
            output_loading_info=True,
        )
        _refuse_missing(path, name, sorted(report["missing_keys"]))
    return loaded


def _refuse_missing(path: str, name: str, absent: Sequence[str]) -> None:
    if absent:
        more = ", ..." if len(absent) > 3 else ""
        raise ModelError(
            f"{name} lacks {len(absent)} of its weights: {', '.join(absent[:3])}{more}",
            where=f"model {path}",
            fix="save the pipeline again",
        )


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
    *,
    dtype: torch.dtype = torch.float32,
    full: bool = False,
    offload: bool = False,
) -> Adapter:
    """Load a pipeline and wrap it. The header is read first, so a wrong family is refused before any weight.

    dtype of the computation and of frozen weights; `full`: the backbone is tuned as a whole, so it stays float32;
    `offload`: text encoders and VAE are on the device only while they work.
    """
    cls = adapter_class(read_header(path))
    pipe = load_pipeline(path, dtype, part_dtypes(dtype, cls.backbone_name if full else None))
    adapter = cls(pipe, device, resolution, max_sequence_length, offload=offload)
    adapter.use_precision(dtype, full=full)
    if torch.device(device).type == "cpu":
        for part in adapter.parts().values():
            align(part)
    return adapter
