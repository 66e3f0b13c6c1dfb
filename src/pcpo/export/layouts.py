"""LoRA weights under the names that sd-scripts ("kohya") and ComfyUI use, from those of diffusers.

Both name modules after the original releases ("native" names): Stability's latent-diffusion U-Net and MM-DiT, Black
Forest Labs' FLUX. There q, k and v are one matrix; sd-scripts trains the U-Net of Stable Diffusion 1 and 2 under its
diffusers names. Facts from sd-scripts' networks/lora*.py and convert_flux_lora.py and ComfyUI's comfy/lora.py.

    kohya   lora_unet_NAME_WITH_UNDERSCORES.lora_down.weight, .lora_up.weight, .alpha
    comfy   diffusion_model.NATIVE.NAME.lora_down.weight, ...: what ComfyUI's own "Extract and Save LoRA" node writes

The update of a module is alpha / rank * up @ down in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pcpo.errors import ModelError

# native name within a block -> the diffusers modules that are its rows, in order
_JOINT = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
# pipeline class -> diffusers' stack of blocks -> (native stack, its modules)
TRANSFORMERS = {
    "StableDiffusion3Pipeline": {"transformer_blocks": ("joint_blocks", _JOINT)},
    "FluxPipeline": {
        "transformer_blocks": ("double_blocks", _DOUBLE),
        "single_transformer_blocks": ("single_blocks", _SINGLE),
    },
}
UNETS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
FAMILIES = (*UNETS, *TRANSFORMERS)
# what sd-scripts writes into ss_base_model_version; web UIs hide a LoRA whose version is not the loaded model's
VERSIONS = {
    "StableDiffusionPipeline": "sd_v1",
    "StableDiffusionXLPipeline": "sdxl_base_v1-0",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux1",
}

Place = tuple[str, tuple[str, ...]]


def check_family(pipeline: str, layout: str) -> None:
    """Raises ModelError for a family whose names in other tools are not known here."""
    if pipeline not in FAMILIES:
        raise ModelError(
            f"the {layout} names of {pipeline} are not known (those of {', '.join(FAMILIES)} are)",
            where=f"export --format {layout}",
            fix="this family exports as --format diffusers (a LoRA) and --merged (a whole pipeline)",
        )


def to_layout(
    layout: str, pipeline: str, weights: Mapping[str, Tensor], scale: float, backbone: nn.Module
) -> dict[str, Tensor]:
    """A LoRA in the "kohya" or "comfy" layout.

    weights   MODULE.lora_A.weight [r, in] and MODULE.lora_B.weight [out, r] by diffusers module name, no prefix
    scale     alpha / r of training
    backbone  the base model's network; only names, shapes and configuration are read, so it may be on `meta`

    Modules that share a native matrix become one LoRA: A stacked, B block-diagonal, zero rows for parts without one.
    Raises ModelError for a family or a module that has no name there.
    """
    check_family(pipeline, layout)
    modules = sorted({name.rpartition(".lora_")[0] for name in weights})
    if layout == "kohya" and pipeline == "StableDiffusionPipeline":
        places: Iterable[Place] = [(module, (module,)) for module in modules]
    else:
        places = dict.fromkeys(_place(pipeline, module, backbone.config) for module in modules)
    out: dict[str, Tensor] = {}
    for native, parts in places:
        down, up = _fuse(parts, weights, backbone)
        name = f"lora_unet_{native.replace('.', '_')}" if layout == "kohya" else f"diffusion_model.{native}"
        out[f"{name}.lora_down.weight"] = down
        out[f"{name}.lora_up.weight"] = up
        out[f"{name}.alpha"] = torch.tensor(scale * len(down))
    return out


def _place(pipeline: str, module: str, config: Any) -> Place:
    """Native name of a diffusers module, and all the modules that share its matrix."""
    found = _unet_place(module, config) if pipeline in UNETS else _block_place(pipeline, module)
    if found is None:
        raise ModelError(
            f"{module} has no name of its own in the layouts of other tools",
            where="model.lora.targets",
            fix="use --format diffusers, or train attention and feed-forward modules only",
        )
    return found


def _block_place(pipeline: str, module: str) -> Place | None:
    stack, _, rest = module.partition(".")
    index, _, inner = rest.partition(".")
    native_stack, table = TRANSFORMERS[pipeline].get(stack, ("", {}))
    for native, parts in table.items():
        if inner in parts:
            return f"{native_stack}.{index}.{native}", tuple(f"{stack}.{index}.{part}" for part in parts)
    return None


def _unet_place(module: str, config: Any) -> Place | None:
    """The attention blocks of the U-Net, which latent diffusion numbers through: one input block per layer and one
    per downsampler, after the first convolution; one output block per layer."""
    words = module.split(".")
    if words[0] == "mid_block" and words[1:3] == ["attentions", "0"]:
        return f"middle_block.1.{'.'.join(words[3:])}", (module,)
    if words[0] not in ("down_blocks", "up_blocks") or words[2] != "attentions":
        return None
    block, layer = int(words[1]), int(words[3])
    number = block * (config.layers_per_block + 1) + layer
    native = f"input_blocks.{1 + number}.1" if words[0] == "down_blocks" else f"output_blocks.{number}.1"
    return f"{native}.{'.'.join(words[4:])}", (module,)


def _fuse(parts: tuple[str, ...], weights: Mapping[str, Tensor], backbone: nn.Module) -> tuple[Tensor, Tensor]:
    """down [R, in] and up [out, R] of a native matrix, R the sum of the ranks of the parts that have a LoRA."""
    present = [part for part in parts if f"{part}.lora_A.weight" in weights]
    down = torch.cat([weights[f"{part}.lora_A.weight"] for part in present])
    if len(parts) == 1:
        return down, weights[f"{parts[0]}.lora_B.weight"].contiguous()
    rows = [
        weights[f"{part}.lora_B.weight"] if part in present else down.new_zeros(_outputs(backbone, part), 0)
        for part in parts
    ]
    return down, torch.block_diag(*rows)


def _outputs(backbone: nn.Module, part: str) -> int:
    weight = backbone.get_submodule(part).weight
    assert isinstance(weight, Tensor)
    return len(weight)
