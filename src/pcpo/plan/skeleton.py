"""A pipeline without weights: its own configuration files make the real classes on the meta device."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pcpo.errors import ModelError, one_line
from pcpo.models.base import Adapter, Conditioning
from pcpo.models.device import find_precision
from pcpo.models.folders import has_weights, read_header, resolve
from pcpo.models.loading import adapter_class
from pcpo.models.lora import add_lora
from pcpo.trainer.config import Config
from pcpo.trainer.model import save_memory

META = torch.device("meta")
SD3_TEXT, FLUX_TEXT, SANA_TEXT, QWEN_TEXT = 256, 512, 300, 1024  # the pipelines' own max_sequence_length


def skeleton(config: Config) -> Adapter:
    """The adapter of the configured model with every part on the meta device, cast and tuned as a run would.

    Reads configuration files only (of a hub id: fetches those). Raises ModelError and ConfigError.
    """
    model = config.model
    family = adapter_class(read_header(model.path))
    pipe = copy.deepcopy(_pipeline(str(Path(resolve(model.path)).expanduser()), model.path))
    try:
        adapter = family(pipe, META, model.resolution, model.max_sequence_length)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a value of the wrong kind in a config.json
        raise ModelError(f"its configuration cannot be used: {one_line(error)}", where=f"model {model.path}") from error
    # nothing computes on it, so that autocast lets meta tensors pass: DeviceRules casts as an accelerator would
    adapter.device = torch.device("cpu")
    with _quiet("diffusers.models.modeling_utils"):  # it advises against casting an empty list of modules
        adapter.use_precision(find_precision(config.run.precision), full=model.tune == "full")
    save_memory(config.model_copy(update={"model": model.model_copy(update={"attention_backend": None})}), adapter)
    if model.tune == "lora":
        add_lora(adapter, model.lora.rank, model.lora.alpha, model.lora.targets)
    else:
        adapter.unwrapped.requires_grad_(True)
    return adapter


def recompute_under(adapter: Adapter, make_context: Callable[[], Any]) -> None:
    """Have gradient checkpointing recompute inside a context; modes of the forward pass do not reach that far."""
    if not adapter.unwrapped.is_gradient_checkpointing:
        return

    def again(module: nn.Module, *args: Any) -> Any:
        return checkpoint(
            module.__call__, *args, use_reentrant=False, context_fn=lambda: (torch.enable_grad(), make_context())
        )

    adapter.unwrapped.enable_gradient_checkpointing(again)


def conditioning(adapter: Adapter, prompts: int) -> Conditioning:
    """Encoded prompts without their numbers: tensors [P, ...] as the family's text encoders give them."""
    shapes = _SHAPES[adapter.pipeline_class](adapter, adapter.text_length.get("max_sequence_length"))
    return Conditioning(
        {name: torch.empty(prompts, *shape, device=META) for name, shape in shapes.items()},
        {name: torch.empty(1, *shape, device=META) for name, shape in shapes.items()},
    )


def _clip_tokens(adapter: Adapter) -> int:
    return int(adapter.pipe.text_encoder.config.max_position_embeddings)


def _sd(adapter: Adapter, length: int | None) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeds": (_clip_tokens(adapter), adapter.unwrapped.config.cross_attention_dim)}


def _sdxl(adapter: Adapter, length: int | None) -> dict[str, tuple[int, ...]]:
    return {**_sd(adapter, length), "pooled": (adapter.pipe.text_encoder_2.config.projection_dim,)}


def _sd3(adapter: Adapter, length: int | None) -> dict[str, tuple[int, ...]]:
    config, own = adapter.unwrapped.config, _clip_tokens(adapter)
    return {
        "prompt_embeds": (own + (length or SD3_TEXT), config.joint_attention_dim),
        "pooled": (config.pooled_projection_dim,),
    }


def _flux(adapter: Adapter, length: int | None) -> dict[str, tuple[int, ...]]:
    config = adapter.unwrapped.config
    return {
        "prompt_embeds": (length or FLUX_TEXT, config.joint_attention_dim),
        "pooled": (config.pooled_projection_dim,),
    }


def _sana(adapter: Adapter, length: int | None) -> dict[str, tuple[int, ...]]:
    tokens = length or SANA_TEXT
    return {"prompt_embeds": (tokens, adapter.unwrapped.config.caption_channels), "mask": (tokens,)}


def _qwen(adapter: Adapter, length: int | None) -> dict[str, tuple[int, ...]]:
    tokens = length or QWEN_TEXT
    return {"prompt_embeds": (tokens, adapter.unwrapped.config.joint_attention_dim), "mask": (tokens,)}


_SHAPES: dict[str, Callable[[Adapter, int | None], dict[str, tuple[int, ...]]]] = {
    "StableDiffusionPipeline": _sd,
    "StableDiffusionXLPipeline": _sdxl,
    "StableDiffusion3Pipeline": _sd3,
    "FluxPipeline": _flux,
    "SanaPipeline": _sana,
    "QwenImagePipeline": _qwen,
}


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Inside, a logger says errors only."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.lru_cache(maxsize=4)
def _pipeline(source: str, path: str) -> Any:
    """The pipeline object of a header: networks on the meta device, a real scheduler, no tokenizers."""
    # its advice to install torchvision is not for our users: pictures go through Pillow
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    import diffusers

    header = read_header(path)
    cls = getattr(diffusers, header.pipeline)
    wanted = [name for name in inspect.signature(cls).parameters if name != "self"]
    parts: dict[str, Any] = dict.fromkeys(name for name in wanted if "encoder" in name or "tokenizer" in name)
    parts |= {name: None for name in ("safety_checker", "feature_extractor") if name in wanted}
    if "requires_safety_checker" in wanted:
        parts["requires_safety_checker"] = False
    for name, (library, class_name) in header.components.items():
        if name not in wanted or name == "safety_checker" or "Tokenizer" in class_name:
            continue
        try:
            parts[name] = _component(source if Path(source).is_dir() else path, name, library, class_name)
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise ModelError(
                f"the configuration of {name} cannot be used: {one_line(error)}", where=f"model {path}"
            ) from error
    return cls(**parts)


def _component(source: str, name: str, library: str, class_name: str) -> Any:
    import diffusers
    import transformers

    if library != "transformers":
        cls = getattr(diffusers, class_name)
        config = cls.load_config(source, subfolder=name)
        if not has_weights(class_name):
            return cls.from_config(config)
        with META:
            return cls.from_config(config)
    if not has_weights(class_name):
        return None
    model_class = getattr(transformers, class_name)
    settings = model_class.config_class.from_pretrained(source, subfolder=name)
    with META:
        return model_class(settings)


def part_bytes(part: nn.Module) -> dict[torch.dtype, int]:
    """Bytes of parameters and buffers by dtype; tied weights count once."""
    found: dict[torch.dtype, int] = {}
    tensors: list[Tensor] = [*part.parameters(), *part.buffers()]
    for tensor in {id(t): t for t in tensors}.values():
        found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.nbytes
    return found


__all__ = ["META", "conditioning", "part_bytes", "recompute_under", "skeleton"]
