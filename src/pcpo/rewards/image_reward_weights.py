"""The published weights of ImageReward (2304.05977) in transformers' layout, written once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pcpo.errors import RewardError, one_line

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw score over the authors' pictures
HEAD = re.compile(r"mlp\.layers\.(\d+)\.(weight|bias)")
BLOCK = re.compile(r"visual_encoder\.blocks\.(\d+)\.(.+)\.(weight|bias)")
BLOCK_PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
WHOLE = {
    "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual_encoder.patch_embed.proj.bias": "vision_model.embeddings.patch_embedding.bias",
    "visual_encoder.norm.weight": "vision_model.post_layernorm.weight",
    "visual_encoder.norm.bias": "vision_model.post_layernorm.bias",
}


def save_converted(weights: Mapping[str, Tensor], folder: str | os.PathLike[str]) -> None:
    """Write the published state dict as a BlipForImageTextRetrieval of transformers; add a tokenizer to the folder.

    The head has no activation between its layers, so that head and standardisation are one affine map: it is kept as
    the "match" row of transformers' own head. Heads of attention are 64 wide. Raises RewardError for weights of another
    model.
    """
    from transformers import BlipConfig, BlipForImageTextRetrieval

    towers = _towers(weights)
    try:
        patch = towers["vision_model.embeddings.patch_embedding.weight"]
        cross = towers["text_encoder.encoder.layer.0.crossattention.self.key.weight"]
        places = towers["vision_model.embeddings.position_embedding"].shape[1] - 1
        words = len(towers["text_encoder.embeddings.word_embeddings.weight"])
        head = _head(weights)
        config = BlipConfig(
            vision_config={
                **_size(towers, "vision_model.encoder.layers", "mlp.fc1.weight"),
                "patch_size": patch.shape[-1],
                "image_size": patch.shape[-1] * round(places**0.5),
                "layer_norm_eps": 1e-6,
            },
            text_config={
                **_size(towers, "text_encoder.encoder.layer", "intermediate.dense.weight"),
                "vocab_size": words,
                "encoder_hidden_size": cross.shape[1],
                "max_position_embeddings": len(towers["text_encoder.embeddings.position_embeddings.weight"]),
                **{f"{name}_token_id": None for name in ("bos", "eos", "sep")},  # of a decoder, which this is not
            },
            image_text_hidden_size=len(towers["text_proj.weight"]),
        )
        model = BlipForImageTextRetrieval(config)
        state = {**towers, "itm_head.weight": head[0], "itm_head.bias": head[1]}
        for kind, keys in zip(("missing", "unknown"), model.load_state_dict(state, strict=False), strict=True):
            if keys:
                raise ValueError(f"{kind}: {', '.join(keys[:3])}")
    except (KeyError, RuntimeError, ValueError) as error:
        raise RewardError(
            f"not the weights of ImageReward ({type(error).__name__}: {one_line(error)})",
            where="ImageReward weights",
            fix="give the state dict of ImageReward.pt",
        ) from error
    model.save_pretrained(Path(folder))


def _towers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both towers, under transformers' names."""
    found = {}
    for key, tensor in weights.items():
        name = key.removeprefix("blip.")
        if name == key or name.endswith("position_ids"):
            continue
        match = BLOCK.fullmatch(name)
        if match and match[2] in BLOCK_PARTS:
            name = f"vision_model.encoder.layers.{match[1]}.{BLOCK_PARTS[match[2]]}.{match[3]}"
        found[WHOLE.get(name, name)] = tensor
    return found


def _size(towers: Mapping[str, Tensor], layers: str, inner: str) -> dict[str, int]:
    """Layers and widths of a tower."""
    count = len({key.removeprefix(f"{layers}.").split(".")[0] for key in towers if key.startswith(f"{layers}.")})
    intermediate, width = towers[f"{layers}.0.{inner}"].shape
    return {
        "num_hidden_layers": count,
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_attention_heads": width // 64,
    }


def _head(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(head(h) - MEAN) / STD as one affine map, in the second of two rows: weight [2, d] and bias [2]."""
    numbers = sorted({int(match[1]) for key in weights if (match := HEAD.fullmatch(key))})
    layers = [tuple(weights[f"mlp.layers.{n}.{kind}"].double() for kind in ("weight", "bias")) for n in numbers]
    weight, bias = layers[0]
    for w, b in layers[1:]:
        weight, bias = w @ weight, w @ bias + b
    weight, bias = weight / STD, (bias - MEAN) / STD
    return torch.cat([torch.zeros_like(weight), weight]).float(), torch.cat([torch.zeros_like(bias), bias]).float()


__all__ = ["save_converted"]
