"""FLUX.1: flow matching on packed latents, distilled guidance, one CLIP and one T5 text encoder."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pcpo.models.base import Adapter, Conditioning
from pcpo.samplers.grids import flow_grid, flow_grid_from_scheduler
from pcpo.types import Grid


class FluxAdapter(Adapter):
    """`FluxPipeline`; latents [tokens, 4 C] are 2 x 2 patches, guidance is an input of the backbone, not a second call.

    FLUX.1-schnell has no guidance input; its guidance_scale has no effect, as in the pipeline.
    """

    pipeline_class = "FluxPipeline"
    kind = "flow"
    backbone_name = "transformer"
    lora_targets = (*Adapter.lora_targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    patch = 2

    def native_resolution(self) -> int:
        """Picture side in pixels that the model was made for."""
        return int(self.pipe.default_sample_size * self.pipe.vae_scale_factor)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[tokens, packed channels]."""
        return ((self.resolution // self.side_multiple) ** 2, self.unwrapped.config.in_channels)

    def encode_one(self, prompt: str) -> dict[str, Tensor]:
        """prompt_embeds [1, tokens, width], pooled [1, width]."""
        length = {"max_sequence_length": self.max_sequence_length} if self.max_sequence_length else {}
        embeds, pooled, _ = self.pipe.encode_prompt(prompt, None, device=self.device, **length)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def predict(self, x: Tensor, timestep: Tensor, cond: Conditioning, index: Tensor, guidance_scale: float) -> Tensor:
        """Velocity [N, tokens, channels] float32 in one call; guidance_scale is embedded."""
        rows = cond.rows(index, guided=False)
        if self.unwrapped.config.guidance_embeds:
            rows["guidance"] = x.new_full((len(x),), guidance_scale)
        return self.call(x, timestep, rows)

    def forward(self, x: Tensor, timestep: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity [N, tokens, channels]; the backbone wants times in [0, 1]."""
        side = self.resolution // self.side_multiple
        return self.backbone(
            hidden_states=x,
            timestep=timestep / 1000,
            guidance=cond.get("guidance"),
            pooled_projections=cond["pooled"],
            encoder_hidden_states=cond["prompt_embeds"],
            txt_ids=x.new_zeros(cond["prompt_embeds"].shape[1], 3),
            img_ids=self.pipe._prepare_latent_image_ids(1, side, side, x.device, x.dtype),
            return_dict=False,
        )[0]

    def unpack(self, latents: Tensor) -> Tensor:
        """[B, tokens, 4 C] to the VAE's [B, C, H, W]."""
        return self.pipe._unpack_latents(latents, self.resolution, self.resolution, self.pipe.vae_scale_factor)

    def grid(self, num_steps: int, *, kind: str = "scheduler", shift: float | None = None) -> Grid:
        """The scheduler's sigmas, shifted by the number of tokens where it is dynamic, or the ideal shifted grid."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        scheduler = self.pipe.scheduler
        if kind == "ideal":
            return flow_grid(num_steps, shift=shift if shift is not None else float(scheduler.config.shift))
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(self.latent_shape[0], *(scheduler.config[name] for name in names))
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return flow_grid_from_scheduler(scheduler, num_steps, mu=mu, sigmas=sigmas)
