"""The model of a run as its settings ask for it: precision, memory savers, and where encoded prompts are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from pcpo.errors import ConfigError, one_line
from pcpo.models.base import Adapter
from pcpo.models.device import PRECISIONS
from pcpo.models.embeddings import DiskEmbeddings, encoder_identity
from pcpo.models.folded import folded
from pcpo.models.loading import load_adapter
from pcpo.trainer.config import Config


def prepare_adapter(
    config: Config, adapter: Adapter | None, device: torch.device | str, prompts: Sequence[str]
) -> Adapter:
    """The adapter of the configured model, or a given one, ready to have its parameters chosen.

    prompts: all that the run will ask for; encoded now where text encoders do not stay on the device. Raises
    ModelError and ConfigError.
    """
    model, run = config.model, config.run
    dtype, full, offload = PRECISIONS[run.precision], model.tune == "full", run.offload != "none"
    if adapter is None:
        adapter = load_adapter(
            model.path,
            device,
            model.resolution,
            model.max_sequence_length,
            dtype=dtype,
            full=full,
            offload=offload,
        )
    else:
        adapter.use_precision(dtype, full=full)
        adapter.offload = offload
    save_memory(config, adapter)
    if run.embedding_cache is not None:
        encoders = [
            part for name, part in adapter.pipe.components.items() if name.startswith(("text_enc", "tokenizer"))
        ]
        identity = encoder_identity(type(adapter).__name__, encoders, adapter.text_length)
        adapter.embeddings = DiskEmbeddings(run.embedding_cache, identity)
    if offload:
        adapter.encode_ahead(prompts)
    if run.offload == "drop":
        adapter.drop_text_encoders()
    return adapter


def folding(config: Config, adapter: Adapter) -> contextlib.AbstractContextManager[None]:
    """What rollouts and updates run in: `folded`, but not where weights are rounded by autocast, or compiled."""
    folds = config.model.lora.fold and adapter.autocast is None and not config.run.compile
    return folded(adapter.unwrapped) if folds else contextlib.nullcontext()


def save_memory(config: Config, adapter: Adapter) -> None:
    """diffusers' own switches. Raises ConfigError where a part does not have one."""
    model, run = config.model, config.run
    vae, backbone = adapter.pipe.vae, adapter.unwrapped
    switches = [
        (bool(model.gradient_checkpointing), "model.gradient_checkpointing", backbone, "enable_gradient_checkpointing"),
        (run.vae_slicing, "run.vae_slicing", vae, "enable_slicing"),
        (run.vae_tiling, "run.vae_tiling", vae, "enable_tiling"),
    ]
    for wanted, setting, part, method in switches:
        if not wanted:
            continue
        try:
            getattr(part, method)()
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise ConfigError(f"{type(part).__name__} has no such switch: {one_line(error)}", where=setting) from None
    if model.gradient_checkpointing == "auto":
        checkpoint_gradients(adapter, False)  # the network has the switch: it is turned on when it is needed
    if model.attention_backend is not None:
        try:
            backbone.set_attention_backend(model.attention_backend)
        except (ValueError, RuntimeError, ImportError) as error:
            raise ConfigError(
                f"diffusers refuses {model.attention_backend}: {one_line(error)}", where="model.attention_backend"
            ) from None


def checkpoint_gradients(adapter: Adapter, on: bool) -> None:
    """Turn gradient checkpointing of the tuned network on or off; its gradients stay the same bits."""
    backbone = adapter.unwrapped
    if on:
        backbone.enable_gradient_checkpointing()
    else:
        backbone.disable_gradient_checkpointing()
