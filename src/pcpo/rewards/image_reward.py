"""ImageReward: human preference by a BLIP that reads the prompt with the picture before it (2304.05977)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcpo.rewards.loading import load_model, load_tokenizer
from pcpo.rewards.preprocess import Preprocess

MAX_TOKENS = 35
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
NEEDS = "config.json, model.safetensors and tokenizer, as save_converted writes them"


class ImageReward:
    """Standardised score, about -2 to 2, of a picture for its prompt.

    score = head(h), h the first hidden state of the text tower, whose layers attend to all patches of the picture

    model  a folder that `image_reward_weights.save_converted` has written, with a tokenizer

    device, batch_size and dtype as of `CLIPScore`; prompts are cut to 35 tokens. Raises RewardError for a model that is
    missing, incomplete or of another kind.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        batch_size: int = 16,
        dtype: str = "float32",
    ) -> None:
        from transformers import BlipForImageTextRetrieval  # importing it takes seconds

        name, where = str(model), f"scorer {str(model)!r}"
        self.device, self.batch_size = torch.device(device), batch_size
        self.tokenizer = load_tokenizer(name, where, NEEDS)
        self.model = load_model(BlipForImageTextRetrieval, name, dtype, where, NEEDS).to(self.device)
        side = self.model.config.vision_config.image_size
        self.preprocess = Preprocess(side, "bicubic", (side, side), 1 / 255, PIXEL_MEAN, PIXEL_STD)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Images uint8 [B, 3, H, W]; returns [B] float32 on the CPU."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        scores = []
        for rows in torch.arange(len(images)).split(self.batch_size):
            pixels = self.preprocess(images[rows].to(self.device)).to(self.model.dtype)
            hidden = self.model.text_encoder(
                tokens["input_ids"][rows].to(self.device),
                attention_mask=tokens["attention_mask"][rows].to(self.device),
                encoder_hidden_states=self.model.vision_model(pixels).last_hidden_state,
            ).last_hidden_state
            head = self.model.itm_head
            scores.append(F.linear(hidden[:, 0].float(), head.weight.float(), head.bias.float())[:, 1].cpu())
        return torch.cat(scores)


__all__ = ["ImageReward"]
