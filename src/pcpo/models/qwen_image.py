"""Qwen-Image: flow matching on packed latents, one Qwen2.5-VL text encoder with a chat template, renormalised CFG."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pcpo.models.flow import PackedFlowAdapter


class QwenImageAdapter(PackedFlowAdapter):
    """`QwenImagePipeline`; prompts have their own lengths, so a mask goes with them.

    Guidance is the pipeline's true_cfg_scale with the negative prompt " ", as its authors sample.
    """

    pipeline_class = "QwenImagePipeline"

    def encode_one(self, prompt: str) -> dict[str, Tensor]:
        """prompt_embeds [1, tokens, width] of the prompt alone, without its template; mask [1, tokens] of ones."""
        embeds, mask = self.pipe.encode_prompt(prompt, device=self.device, **self.text_length)
        # the pipeline leaves a mask of ones out; ours says which tokens are padding once prompts are put together
        return {"prompt_embeds": embeds, "mask": embeds.new_ones(embeds.shape[:2]) if mask is None else mask}

    def encode_empty(self) -> dict[str, Tensor]:
        """A space: the template's own text is cut away, and an empty prompt would leave only its end."""
        return self.encode_one(" ")

    def pipeline_arguments(self, guidance_scale: float) -> dict[str, Any]:
        """Arguments with which `pipe(...)` samples what we sample: its true_cfg_scale, with our negative prompt."""
        negative = " " if guidance_scale > 1 else None
        return {"true_cfg_scale": guidance_scale, "negative_prompt": negative, **self.text_length}

    def forward(self, x: Tensor, timestep: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity [N, tokens, channels]; the backbone wants times in [0, 1]."""
        return self.backbone(
            hidden_states=x,
            timestep=timestep / 1000,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_hidden_states_mask=cond["mask"].bool(),
            img_shapes=[[(1, self.patches, self.patches)]] * len(x),
            return_dict=False,
        )[0]

    def guide(self, prompt: Tensor, empty: Tensor, scale: float) -> Tensor:
        """Guided velocity with every token scaled to the norm it has without guidance."""
        guided = super().guide(prompt, empty, scale)
        return guided * (prompt.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def to_pictures(self, latents: Tensor) -> Tensor:
        """The VAE is a video model of one frame, with a mean and a deviation per channel."""
        vae, latents = self.pipe.vae, self.unpack(latents)
        mean, std = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0][:, :, 0]
