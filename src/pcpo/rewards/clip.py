"""Text-image alignment by a dual encoder of transformers (CLIP, SigLIP, ...)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcpo.errors import RewardError, one_line
from pcpo.rewards.preprocess import Preprocess

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MAX_CACHED_PROMPTS = 16_384


class CLIPScore:
    """Cosine of picture and prompt in [-1, 1], by any model with get_text_features and get_image_features.

    model       a folder (config.json, *.safetensors, tokenizer, preprocessor_config.json), or a hub id,
                which is looked up only if there is no such folder
    device      where the model runs; pictures are moved there batch by batch
    batch_size  pictures encoded at a time

    Weights are read from safetensors only and code from a model repository is never run. Raises RewardError
    for a model that is missing, out of reach, incomplete, or no dual encoder.
    """

    def __init__(
        self, model: str | os.PathLike[str], device: str | torch.device = "cpu", *, batch_size: int = 64
    ) -> None:
        self.name = str(model)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.model, self.tokenizer, self.preprocess = _load(self.name)
        self.model.to(self.device).eval().requires_grad_(False)
        self.max_length = _text_length(self.model, self.tokenizer)
        self._text_cache: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Images uint8 [B, 3, H, W]; returns [B] float32 on the CPU."""
        return (self.image_features(images) * self.text_features(prompts)).sum(dim=-1)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Unit vectors [B, d] float32 on the CPU, of uint8 [B, 3, H, W]."""
        features = []
        for part in images.split(self.batch_size):
            pixels = self.preprocess(part.to(self.device))
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

    def _encode(self, prompt: str) -> Tensor:
        tokens = self.tokenizer(
            [prompt], padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return _unit(self.model.get_text_features(**tokens.to(self.device)))[0]


class EmojiCLIP(CLIPScore):
    """CLIPScore by the small CLIP that ships with the package, trained on 64 x 64 captioned emoji."""

    def __init__(self, device: str | torch.device = "cpu", *, batch_size: int = 64) -> None:
        folder = Path(str(resources.files("pcpo"))) / "assets" / "emoji-clip"
        super().__init__(folder, device, batch_size=batch_size)


def _unit(output: Any) -> Tensor:
    """Normalise features: a tensor, or the pooler_output of an output object (transformers 5)."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features.float(), dim=-1).cpu()


def _text_length(model: nn.Module, tokenizer: Any) -> int:
    """Tokens the text tower takes: a tokenizer without a limit of its own reports a huge number."""
    config: Any = model.config
    text = getattr(config, "text_config", config)
    return min(tokenizer.model_max_length, getattr(text, "max_position_embeddings", 77))


def _load(name: str) -> tuple[Any, Any, Preprocess]:
    """Model, tokenizer and preprocessing of a local folder or a hub id."""
    where = f"scorer {name!r}"
    local = name != "" and Path(name).is_dir()
    if not local and not HUB_ID.fullmatch(name):
        raise RewardError("no such folder", where=where, fix="check the path, or give a hub id (owner/name)")
    # here and not above: importing them takes seconds, and only this reward needs them
    from transformers import AutoModel, AutoTokenizer

    options = {"local_files_only": local, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        preprocess = Preprocess.from_config(preprocessor_config(name, local), where=where)
        model, loading = AutoModel.from_pretrained(
            name, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    except RewardError:
        raise
    # damaged files and an unreachable hub surface as OSError, ValueError, KeyError, SafetensorError, ...
    except Exception as error:
        raise RewardError(
            f"cannot be loaded ({type(error).__name__}: {one_line(error)})",
            where=where,
            fix="give a folder with config.json, model.safetensors, tokenizer and preprocessor_config.json"
            + ("" if local else "; there is no folder of this name, and the hub did not give the model"),
        ) from error
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise RewardError(f"{type(model).__name__} is no text-image dual encoder", where=where, fix="use a CLIP")
    if loading["missing_keys"]:
        keys = sorted(loading["missing_keys"])
        raise RewardError(
            f"{len(keys)} weights are missing, such as {keys[0]!r}", where=where, fix="save the whole model"
        )
    return model, tokenizer, preprocess


def preprocessor_config(name: str, local: bool) -> dict[str, Any]:
    """The image processor's settings; a folder saved as a processor keeps them in processor_config.json."""
    from transformers.utils import cached_file

    for file in ("preprocessor_config.json", "processor_config.json"):
        path = cached_file(name, file, local_files_only=local, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
            return config.get("image_processor", config)
    raise FileNotFoundError("no preprocessor_config.json")


__all__ = ["CLIPScore", "EmojiCLIP", "preprocessor_config"]
