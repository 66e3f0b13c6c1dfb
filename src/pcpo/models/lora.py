"""Choose what is trained, and save it in diffusers' formats."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from pcpo.errors import ConfigError, ModelError, RunFolderError, one_line
from pcpo.models.base import Adapter
from pcpo.models.files import check_files
from pcpo.models.precision import align

LORA_FILE = "pytorch_lora_weights.safetensors"


def add_lora(
    adapter: Adapter,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    name: str = "default",
) -> None:
    """Put a fresh float32 LoRA (2106.09685) on the backbone: gaussian A, zero B, so it starts as the base model.

    Raises ConfigError when a target matches no module, or when the backbone has a LoRA of that name already.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    if name in getattr(adapter.unwrapped, "peft_config", {}):
        raise ConfigError("has a LoRA already", where=f"model {adapter.path}", fix="load it anew for another run")
    names = list(targets or adapter.lora_targets)
    modules = [name for name, _ in adapter.unwrapped.named_modules()]
    idle = [t for t in names if not any(m == t or m.endswith(f".{t}") for m in modules)]
    if targets and idle:
        raise ConfigError(
            f"matches no module of {type(adapter.unwrapped).__name__}: {', '.join(idle)}",
            where="model.lora.targets",
        )
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, init_lora_weights="gaussian", target_modules=names)
    with _several_loras():
        adapter.unwrapped.add_adapter(config, name)
    cast_training_params(adapter.unwrapped, torch.float32)


@contextlib.contextmanager
def _several_loras() -> Iterator[None]:
    """peft warns of a second LoRA on a model; here that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        yield


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Named parameters that receive gradients, in a fixed order."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def save_lora(adapter: Adapter, folder: Path) -> None:
    """Write the LoRA where `pipe.load_lora_weights(folder)` finds it, with its alpha."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    name, module = adapter.backbone_name, adapter.unwrapped
    adapter.pipe.save_lora_weights(
        folder,
        **{f"{name}_lora_layers": get_peft_model_state_dict(module)},
        **_collate_lora_metadata({name: module}),
    )


def save_tuned(adapter: Adapter, run_dir: Path, tune: str) -> Path:
    """Save what was tuned under the run folder: `lora/`, or the backbone's own folder for a full fine-tuning."""
    if tune == "lora":
        save_lora(adapter, run_dir / "lora")
        return run_dir / "lora"
    target = run_dir / adapter.backbone_name
    adapter.unwrapped.save_pretrained(target, safe_serialization=True)
    return target


def load_tuned(adapter: Adapter, run_dir: Path, tune: str, name: str = "default") -> bool:
    """Put what `save_tuned` wrote back on an adapter, a LoRA as `name`; False when the run has saved nothing yet.

    Raises RunFolderError when it cannot be read.
    """
    folder = run_dir / ("lora" if tune == "lora" else adapter.backbone_name)
    if not folder.is_dir():
        return False
    try:
        check_files([folder])
        if tune == "lora":
            with _several_loras():
                adapter.unwrapped.load_lora_adapter(
                    folder, prefix=adapter.backbone_name, weight_name=LORA_FILE, adapter_name=name
                )
            _require_all(adapter, folder / LORA_FILE, name)
            _restore_float32(adapter, folder / LORA_FILE, name)
        else:
            adapter.replace_backbone(type(adapter.unwrapped).from_pretrained(folder, use_safetensors=True))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, ModelError) as error:
        raise RunFolderError(
            f"its weights cannot be loaded ({one_line(error)})",
            where=str(folder),
            fix="remove this folder and finish the run again with --resume",
        ) from error
    adapter.unwrapped.to(next(adapter.unwrapped.parameters()).device)  # the new ones, to where the base is
    align(adapter.unwrapped)
    return True


def _restore_float32(adapter: Adapter, file: Path, name: str) -> None:
    """Undo that diffusers casts a LoRA to the dtype of the base: in training it was float32."""
    if adapter.unwrapped.dtype == torch.float32:
        return
    from peft.utils import set_peft_model_state_dict

    module, prefix = adapter.unwrapped, f"{adapter.backbone_name}."
    for key, parameter in module.named_parameters():
        if f".{name}." in key:
            parameter.data = parameter.data.float()
    state = {key.removeprefix(prefix): value for key, value in load_file(file).items()}
    set_peft_model_state_dict(module, state, adapter_name=name)


def _require_all(adapter: Adapter, path: Path, name: str) -> None:
    """diffusers passes over tensors that fit nowhere and goes on without those that lack: ValueError here."""
    from peft.utils import get_peft_model_state_dict

    with safe_open(path, framework="pt") as file:
        saved = set(file.keys())
    known = getattr(adapter.unwrapped, "peft_config", {})
    loaded = get_peft_model_state_dict(adapter.unwrapped, adapter_name=name) if name in known else {}
    if not saved or saved != {f"{adapter.backbone_name}.{key}" for key in loaded}:
        raise ValueError(f"{len(saved)} tensors, of which {len(loaded)} fit the model")
