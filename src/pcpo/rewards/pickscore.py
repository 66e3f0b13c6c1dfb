"""PickScore: human preference by a CLIP tuned on pairs of pictures (2305.01569)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pcpo.rewards.clip import CLIPScore


class PickScore(CLIPScore):
    """exp(logit_scale) cos(picture, prompt), about 17 to 24 with the published weights.

    Options as `CLIPScore`; the published model is ``yuvalkirstain/PickScore_v1`` with the processor of
    ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``. Raises RewardError for a model without a logit_scale.
    """

    def __init__(self, model: str | os.PathLike[str], device: str | torch.device = "cpu", **options: Any) -> None:
        super().__init__(model, device, **options)
        self.scale = math.exp(self.learned("logit_scale"))

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Images uint8 [B, 3, H, W]; returns [B] float32 on the CPU."""
        return self.scale * self.cosine(images, prompts)


__all__ = ["PickScore"]
