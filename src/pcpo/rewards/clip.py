"""Text-image alignment by a dual encoder of transformers (CLIP, SigLIP, ...)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcpo.errors import RewardError
from pcpo.rewards.loading import load_model, load_preprocess, load_tokenizer, preprocessor_config

MAX_CACHED_PROMPTS = 16_384
NEEDS = "config.json, model.safetensors, tokenizer and preprocessor_config.json"


class CLIPScore:
    """Cosine of picture and prompt in [-1, 1], by any model with get_text_features and get_image_features.

    model       a folder (config.json, *.safetensors, tokenizer, preprocessor_config.json), or a hub id,
                which is looked up only if there is no such folder
    device      where the model runs; pictures are moved there batch by batch
    batch_size  pictures encoded at a time
    dtype       of the weights: float32, bfloat16 or float16; features are normalised in float32
    processor   folder or hub id of tokenizer and preprocessing, where the model's own has none

    Weights are read from safetensors only and code from a model repository is never run. Raises RewardError
    for a model that is missing, out of reach, incomplete, or no dual encoder.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        batch_size: int = 64,
        dtype: str = "float32",
        processor: str | os.PathLike[str] | None = None,
    ) -> None:
        from transformers import AutoModel  # here and not above: importing it takes seconds

        self.name = str(model)
        self.where = f"scorer {self.name!r}"
        self.device = torch.device(device)
        self.batch_size = batch_size
        source = self.name if processor is None else str(processor)
        self.tokenizer = load_tokenizer(source, self.where, NEEDS)
        self.preprocess = load_preprocess(source, self.where, NEEDS)
        self.model = load_model(AutoModel, self.name, dtype, self.where, NEEDS)
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            kind = type(self.model).__name__
            raise RewardError(f"{kind} is no text-image dual encoder", where=self.where, fix="use a CLIP")
        self.model.to(self.device)
        self.max_length = _text_length(self.model, self.tokenizer)
        self._text_cache: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Images uint8 [B, 3, H, W]; returns [B] float32 on the CPU."""
        return self.cosine(images, prompts)

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [B] of each picture with its prompt, float32 on the CPU."""
        return (self.image_features(images) * self.text_features(prompts)).sum(dim=-1)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Unit vectors [B, d] float32 on the CPU, of uint8 [B, 3, H, W]."""
        features = []
        for part in images.split(self.batch_size):
            pixels = self.preprocess(part.to(self.device)).to(self.model.dtype)
            features.append(_unit(self.model.get_image_features(pixel_values=pixels)))
        return torch.cat(features)

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors [B, d] float32 on the CPU; each distinct prompt is encoded once.

        One at a time and padded to full length: the last bits of a vector then depend on its prompt alone,
        not on which prompts happened to be new together, so a resumed run scores as an unbroken one does.
        """
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._text_cache:
                if len(self._text_cache) >= MAX_CACHED_PROMPTS:
                    self._text_cache.pop(next(iter(self._text_cache)))  # the oldest
                self._text_cache[prompt] = self._encode(prompt)
        return torch.stack([self._text_cache[prompt] for prompt in prompts])

    def learned(self, name: str) -> float:
        """A scalar that the model learned beside its towers; RewardError for a model without it."""
        value = getattr(self.model, name, None)
        if not isinstance(value, Tensor) or value.numel() != 1:
            kind = type(self.model).__name__
            raise RewardError(f"{kind} has no {name}", where=self.where, fix="use a model of the documented class")
        return float(value)

    def _encode(self, prompt: str) -> Tensor:
        tokens = self.tokenizer(
            [prompt], padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return _unit(self.model.get_text_features(**tokens.to(self.device)))[0]


class EmojiCLIP(CLIPScore):
    """CLIPScore by the small CLIP that ships with the package, trained on 64 x 64 captioned emoji."""

    def __init__(self, device: str | torch.device = "cpu", *, batch_size: int = 64, dtype: str = "float32") -> None:
        folder = Path(str(resources.files("pcpo"))) / "assets" / "emoji-clip"
        super().__init__(folder, device, batch_size=batch_size, dtype=dtype)


def _unit(output: Any) -> Tensor:
    """Normalise features: a tensor, or the pooler_output of an output object (transformers 5)."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features.float(), dim=-1).cpu()


def _text_length(model: nn.Module, tokenizer: Any) -> int:
    """Tokens the text tower takes: a tokenizer without a limit of its own reports a huge number."""
    config: Any = model.config
    text = getattr(config, "text_config", config)
    return min(tokenizer.model_max_length, getattr(text, "max_position_embeddings", 77))


__all__ = ["CLIPScore", "EmojiCLIP", "preprocessor_config"]
