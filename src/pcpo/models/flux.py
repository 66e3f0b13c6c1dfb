"""FLUX.1: flow matching on packed latents, distilled guidance, one CLIP and one T5 text encoder."""

from __future__ import annotations

from torch import Tensor

from pcpo.models.base import Conditioning
from pcpo.models.flow import PackedFlowAdapter


class FluxAdapter(PackedFlowAdapter):
    """`FluxPipeline`; guidance is an input of the backbone, not a second call.

    FLUX.1-schnell has no guidance input; its guidance_scale has no effect, as in the pipeline.
    """

    pipeline_class = "FluxPipeline"

    def encode_one(self, prompt: str) -> dict[str, Tensor]:
        """prompt_embeds [1, tokens, width], pooled [1, width]."""
        embeds, pooled, _ = self.pipe.encode_prompt(prompt, None, device=self.device, **self.text_length)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def predict(self, x: Tensor, timestep: Tensor, cond: Conditioning, index: Tensor, guidance_scale: float) -> Tensor:
        """Velocity [N, tokens, channels] float32 in one call; guidance_scale is embedded."""
        rows = cond.rows(index, guided=False)
        if self.unwrapped.config.guidance_embeds:
            rows["guidance"] = x.new_full((len(x),), guidance_scale)
        return self.call(x, timestep, rows)

    def forward(self, x: Tensor, timestep: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity [N, tokens, channels]; the backbone wants times in [0, 1]."""
        return self.backbone(
            hidden_states=x,
            timestep=timestep / 1000,
            guidance=cond.get("guidance"),
            pooled_projections=cond["pooled"],
            encoder_hidden_states=cond["prompt_embeds"],
            txt_ids=x.new_zeros(cond["prompt_embeds"].shape[1], 3),
            img_ids=self.pipe._prepare_latent_image_ids(1, self.patches, self.patches, x.device, x.dtype),
            return_dict=False,
        )[0]
