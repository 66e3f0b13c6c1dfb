"""Pictures to vectors: the feature sets in which pictures are compared. Every metric names the set it was taken in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pcpo.errors import ModelError, RewardError
from pcpo.models.folders import embedded_folder
from pcpo.rewards.clip import CLIPScore
from pcpo.rewards.loading import is_local, load_model, load_preprocess, loading
from pcpo.rewards.registry import load_reward

EMBEDDED = "emoji_clip"
BATCH = 64
NEEDS = "config.json, model.safetensors and preprocessor_config.json"


@dataclass(frozen=True)
class Features:
    """What a network makes of B pictures.

    pooled  [B, d] float32, one vector a picture
    stages  each [B, L, C] float32: channels at L places, for every stage of the network; empty if not asked for
    """

    pooled: Tensor
    stages: tuple[Tensor, ...] = ()


class FeatureSet(Protocol):
    """A feature set: `name` for the tables, `unit` whether pooled vectors have length 1, and a call."""

    name: str
    unit: bool

    def __call__(self, images: Tensor, stages: bool = False) -> Features:
        """Features of uint8 [B, 3, H, W]."""
        ...


class DualEncoder:
    """The picture tower of a CLIP-like model: unit vectors in the space that it shares with texts."""

    unit = True

    def __init__(self, name: str, scorer: CLIPScore) -> None:
        self.name, self.scorer = name, scorer

    @torch.no_grad()
    def __call__(self, images: Tensor, stages: bool = False) -> Features:
        """Features of uint8 [B, 3, H, W]; the stages are the blocks' outputs at the patches."""
        if not stages:
            return Features(self.scorer.image_features(images))
        pixels = self.scorer.preprocess(images.to(self.scorer.device))
        out = self.scorer.model.get_image_features(pixel_values=pixels, output_hidden_states=True)
        config = self.scorer.model.config.vision_config
        pooled = torch.nn.functional.normalize(out.pooler_output.float(), dim=-1)
        return Features(pooled.cpu(), places(out.hidden_states[1:], pixels, getattr(config, "patch_size", None)))

    def similarity(self, images: Features, captions: Sequence[str]) -> Tensor:
        """Cosines [B, K] of pictures and captions."""
        return images.pooled @ self.scorer.text_features(captions).T

    @property
    def logit_scale(self) -> float:
        """Factor from cosines to the logits that the model was trained with."""
        return math.exp(self.scorer.learned("logit_scale"))


class Backbone:
    """A vision backbone of transformers (DINOv2, ViT, ResNet, ConvNeXt, ...) with its own preprocessing.

    The pooled vector is the model's `pooler_output` (of DINOv2: the class token), or the mean over places.
    """

    unit = False

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModel  # here and not above: importing it takes seconds

        where = f"features {name}"
        self.name, self.device = name, torch.device(device)
        self.preprocess = load_preprocess(name, where, NEEDS)
        self.model = load_model(AutoModel, name, "float32", where, NEEDS).to(self.device)
        if getattr(self.model, "main_input_name", "") != "pixel_values":
            raise ModelError(f"{type(self.model).__name__} takes no pictures", where=where, fix="use a vision model")

    @torch.no_grad()
    def __call__(self, images: Tensor, stages: bool = False) -> Features:
        """Features of uint8 [B, 3, H, W]."""
        pixels = self.preprocess(images.to(self.device))
        out = self.model(pixel_values=pixels, output_hidden_states=True)
        pooled = getattr(out, "pooler_output", None)
        last = _flat(out.last_hidden_state)
        pooled = last.mean(1) if pooled is None else pooled.flatten(1)
        patch = getattr(self.model.config, "patch_size", None)
        return Features(pooled.float().cpu(), places(out.hidden_states[1:], pixels, patch) if stages else ())


class OwnFeatures:
    """A function of yours: images uint8 [B, 3, H, W] -> vectors [B, d], or a Features record."""

    unit = False

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function

    @torch.no_grad()
    def __call__(self, images: Tensor, stages: bool = False) -> Features:
        """Features of uint8 [B, 3, H, W]; ModelError unless they are finite [B, d]."""
        out = self.function(images)
        out = out if isinstance(out, Features) else Features(torch.as_tensor(out))
        if out.pooled.ndim != 2 or len(out.pooled) != len(images) or not bool(out.pooled.isfinite().all()):
            raise ModelError(
                f"returned {tuple(out.pooled.shape)} for {len(images)} pictures, or numbers that are not finite",
                where=f"features {self.name}",
                fix="return one finite vector per picture, shape (pictures, dimensions)",
            )
        return Features(out.pooled.detach().float().cpu(), tuple(s.detach().float().cpu() for s in out.stages))


def load_features(name: str, device: torch.device | str = "cpu") -> FeatureSet:
    """A feature set by name.

    - `emoji_clip`: the small CLIP that ships with the package
    - a folder or hub id of a dual encoder (CLIP, SigLIP) or of a vision backbone (DINOv2, ResNet, ...) of transformers
    - a `.safetensors` file of EfficientNet-Lite0, see `pcpo.evaluation.efficientnet`
    - `module:attribute` or `file.py:attribute`: your own function or class; its code is run

    Raises ModelError for what is missing, incomplete, or no picture model.
    """
    try:
        if name == EMBEDDED:
            return DualEncoder(name, CLIPScore(embedded_folder("emoji-clip"), device))
        if name.endswith(".safetensors"):
            from pcpo.evaluation.efficientnet import EfficientNetLite0

            return EfficientNetLite0(name, device)
        if ":" in name:
            return OwnFeatures(name.rpartition("/")[2], load_reward(name))
        return DualEncoder(name, CLIPScore(name, device)) if _is_dual(name) else Backbone(name, device)
    except RewardError as error:  # the loaders are the rewards' own
        raise ModelError(error.what, where=f"features {name}", fix=error.fix) from error


def _is_dual(name: str) -> bool:
    """Whether the configuration has two towers."""
    where = f"features {name}"
    local = is_local(name, where)
    with loading(where, NEEDS, local):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    return hasattr(config, "text_config") and hasattr(config, "vision_config")


def _flat(x: Tensor) -> Tensor:
    """[B, C, h, w] or [B, L, C] as [B, L, C]."""
    return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x


def places(states: Sequence[Tensor], pixels: Tensor, patch: int | None) -> tuple[Tensor, ...]:
    """Hidden states as [B, L, C], without the class and register tokens that come before the patches."""
    places = [_flat(state).float().cpu() for state in states]
    if patch and states[0].ndim == 3:
        count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
        places = [x[:, -count:] for x in places]
    return tuple(places)


__all__ = [
    "BATCH",
    "EMBEDDED",
    "Backbone",
    "DualEncoder",
    "FeatureSet",
    "Features",
    "OwnFeatures",
    "load_features",
    "places",
]
