"""Stable Diffusion XL: U-Net, two text encoders, size and crop conditioning."""

from __future__ import annotations

import torch
from torch import Tensor

from pcpo.models.stable_diffusion import StableDiffusionAdapter


class StableDiffusionXLAdapter(StableDiffusionAdapter):
    """`StableDiffusionXLPipeline`, uncropped, at its own size, with a DDIM schedule from its own scheduler."""

    pipeline_class = "StableDiffusionXLPipeline"

    def encode_one(self, prompt: str) -> dict[str, Tensor]:
        """prompt_embeds [1, tokens, width], pooled [1, width]."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(prompt, device=self.device, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def encode_empty(self) -> dict[str, Tensor]:
        """Zeros where the pipeline uses zeros for an empty prompt."""
        empty = self.encode_one("")
        if not self.pipe.config.force_zeros_for_empty_prompt:
            return empty
        return {name: torch.zeros_like(value) for name, value in empty.items()}

    def forward(self, x: Tensor, timestep: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Raw output [N, C, H, W]."""
        side = float(self.resolution)
        sizes = x.new_tensor([side, side, 0.0, 0.0, side, side]).expand(len(x), -1)
        return self.backbone(
            x,
            timestep,
            encoder_hidden_states=cond["prompt_embeds"],
            added_cond_kwargs={"text_embeds": cond["pooled"], "time_ids": sizes},
            return_dict=False,
        )[0]
