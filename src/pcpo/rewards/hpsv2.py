"""HPSv2.1: human preference by a tuned ViT-H-14 of open_clip (2306.09341), in transformers' format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from pcpo.errors import RewardError
from pcpo.rewards.clip import CLIPScore

BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
BLOCK_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
WHOLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
PASSED_OVER = ("attn_mask",)


class HPSv2(CLIPScore):
    """Cosine of picture and prompt, as HPSv2.1 defines its score (without logit scale): about .2 to .35.

    Options as `CLIPScore`. The weights are published in open_clip's format only: convert them once with
    `from_open_clip` and name the folder; tokenizer and preprocessing are those of
    ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K`` (option ``processor``).
    """


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of transformers' CLIPModel from that of an open_clip CLIP with a ViT tower.

    Raises RewardError for a key that such a model does not have.
    """
    return dict(pair for key, tensor in weights.items() if key not in PASSED_OVER for pair in _converted(key, tensor))


def _converted(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if key in WHOLE:
        yield WHOLE[key], tensor
    elif key in TRANSPOSED:
        yield TRANSPOSED[key], tensor.T.contiguous()
    else:
        match = BLOCK.fullmatch(key)
        tower = f"{'vision' if match and match[1] else 'text'}_model.encoder.layers.{match[2] if match else ''}"
        part, _, kind = match[3].rpartition(".") if match else ("", "", "")
        if part in BLOCK_PARTS:
            yield f"{tower}.{BLOCK_PARTS[part]}.{kind}", tensor
        elif (part, kind) in (("attn", "in_proj_weight"), ("attn", "in_proj_bias")):
            for name, third in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{tower}.self_attn.{name}_proj.{kind.removeprefix('in_proj_')}", third.contiguous()
        else:
            raise RewardError(
                f"key {key!r} is not of a ViT CLIP", where="open_clip weights", fix="give the state dict of a ViT-H-14"
            )


__all__ = ["HPSv2", "from_open_clip"]
