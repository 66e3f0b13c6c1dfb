"""SigLIP: the probability that picture and text belong together (2303.15343)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pcpo.errors import RewardError
from pcpo.rewards.clip import CLIPScore

OUTPUTS = ("logit", "probability")


class SigLIPScore(CLIPScore):
    """exp(logit_scale) cos(picture, prompt) + logit_bias, or its sigmoid.

    output  logit (the default: a probability is flat near 0 and 1, where most pictures are) or probability

    Other options as `CLIPScore`; a model is for instance ``google/siglip-so400m-patch14-384``. Raises
    RewardError for a model without logit_scale and logit_bias.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        output: str = "logit",
        **options: Any,
    ) -> None:
        if output not in OUTPUTS:
            raise RewardError(f"output {output!r}", where="siglip_score", fix=f"use one of: {', '.join(OUTPUTS)}")
        super().__init__(model, device, **options)
        self.output = output
        self.scale, self.bias = math.exp(self.learned("logit_scale")), self.learned("logit_bias")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Images uint8 [B, 3, H, W]; returns [B] float32 on the CPU."""
        logit = self.scale * self.cosine(images, prompts) + self.bias
        return logit.sigmoid() if self.output == "probability" else logit


__all__ = ["SigLIPScore"]
