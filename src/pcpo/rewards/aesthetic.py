"""LAION's aesthetic predictor, version 2: a head on the picture embedding of CLIP ViT-L/14."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcpo.errors import RewardError
from pcpo.rewards.clip import CLIPScore
from pcpo.rewards.loading import is_local, loading

HEAD_KEY = re.compile(r"(?:layers\.(\d+)\.)?(weight|bias)")
NEEDS = "model.safetensors that holds layers.N.weight and layers.N.bias"


class Aesthetic(CLIPScore):
    """Predicted rating, about 1 to 10, of a picture alone: head(unit picture embedding); the prompt is not looked at.

    model  CLIP of the embedding; the published head was trained on ``openai/clip-vit-large-patch14``
    head   the head's weights: a .safetensors file, a folder with model.safetensors, or a hub id

    The head is a chain of linear layers without activations between them, `layers.N.weight` and `layers.N.bias` in the
    order of N, or a single `weight` and `bias`; the published one is 768-1024-128-64-16-1 with dropout, which does
    nothing here. Other options as `CLIPScore`. Raises RewardError for a head that does not chain, does not take
    the model's embedding, or does not end in one number.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        head: str | os.PathLike[str],
        **options: Any,
    ) -> None:
        layers = load_head(str(head))  # the small file first
        super().__init__(model, device, **options)
        width = self.model.config.projection_dim
        if layers[0][0].shape[1] != width:
            raise RewardError(
                f"takes embeddings of {layers[0][0].shape[1]}, and {self.name} gives {width}",
                where=f"aesthetic head {str(head)!r}",
                fix="use the CLIP that the head was trained on",
            )
        self.head = layers

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Images uint8 [B, 3, H, W]; returns [B] float32 on the CPU."""
        x = self.image_features(images)
        for weight, bias in self.head:
            x = x @ weight.T + bias
        return x[:, 0]


def load_head(source: str) -> list[tuple[Tensor, Tensor]]:
    """Linear layers (weight [out, in], bias [out]) float32, first to last; other keys in the file are passed over."""
    where = f"aesthetic head {source!r}"
    tensors = _read(source, where)
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = HEAD_KEY.fullmatch(key)
        assert match is not None
        found.setdefault(int(match[1] or 0), {})[match[2]] = tensor
    layers = [(parts.get("weight"), parts.get("bias")) for _, parts in sorted(found.items())]
    whole = [(w, b) for w, b in layers if w is not None and b is not None]
    fits = (
        len(whole) == len(layers) > 0
        and all(w.ndim == 2 and b.shape == w.shape[:1] for w, b in whole)
        and all(left[0].shape[0] == right[0].shape[1] for left, right in pairwise(whole))
        and whole[-1][0].shape[0] == 1
    )
    if not fits:
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        raise RewardError(
            f"no chain of linear layers that ends in one number: {shapes}", where=where, fix=f"give a {NEEDS}"
        )
    return whole


def _read(source: str, where: str) -> dict[str, Tensor]:
    """The head's tensors alone: the file may hold a whole CLIP beside them."""
    from safetensors import safe_open

    if source.endswith(".safetensors"):
        if not Path(source).is_file():
            raise RewardError("no such file", where=where, fix="check the path")
        local, path = True, source
    else:
        from transformers.utils import cached_file

        local = is_local(source, where)
        with loading(where, NEEDS, local):
            path = cached_file(source, "model.safetensors", local_files_only=local)
    with loading(where, NEEDS, local), safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).float() for key in file.keys() if HEAD_KEY.fullmatch(key)}  # noqa: SIM118


__all__ = ["Aesthetic", "load_head"]
