"""Stable Diffusion 1.x and 2.x: U-Net, eps- or v-prediction, one CLIP text encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pcpo.errors import ConfigError, ModelError
from pcpo.models.base import Adapter
from pcpo.samplers.grids import ddim_grid_from_scheduler, log_snr_uniform_grid
from pcpo.samplers.parameterisation import diffusion_eps_from_v
from pcpo.types import Grid


class StableDiffusionAdapter(Adapter):
    """`StableDiffusionPipeline` with a DDIM schedule made from the pipeline's own scheduler."""

    pipeline_class = "StableDiffusionPipeline"
    kind = "diffusion"
    backbone_name = "unet"

    def set_up(self) -> None:
        """Make a DDIM schedule from the pipeline's. Raises ModelError where that has none, or another prediction."""
        from diffusers import DDIMScheduler

        super().set_up()
        own = self.pipe.scheduler
        if not hasattr(own, "alphas_cumprod"):
            raise ModelError(
                f"{type(own).__name__} has no noise schedule of diffusion (alphas_cumprod)",
                where="model scheduler",
                fix="save the pipeline with a DDIMScheduler",
            )
        self.scheduler = DDIMScheduler.from_config(own.config, clip_sample=False)
        self.prediction_type = self.scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"prediction_type {self.prediction_type} is not supported (epsilon and v_prediction are)",
                where="model scheduler",
            )
        self.alphas_cumprod = self.scheduler.alphas_cumprod.to(self.device)

    def deterministic_scheduler(self) -> Any:
        """DDIM, whose eta is 0 unless `pipe(...)` is given another."""
        return self.scheduler

    def native_resolution(self) -> int:
        """Picture side in pixels that the model was made for."""
        return int(self.unwrapped.config.sample_size * self.pipe.vae_scale_factor)

    def encode_one(self, prompt: str) -> dict[str, Tensor]:
        """prompt_embeds [1, tokens, width]."""
        return {"prompt_embeds": self.pipe.encode_prompt(prompt, self.device, 1, False)[0]}

    def forward(self, x: Tensor, timestep: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Raw output [N, C, H, W]."""
        return self.backbone(x, timestep, encoder_hidden_states=cond["prompt_embeds"], return_dict=False)[0]

    def prediction(self, out: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        """eps [N, C, H, W]; a v-prediction is converted."""
        if self.prediction_type == "epsilon":
            return out
        return diffusion_eps_from_v(out, x, self.alphas_cumprod[timestep.long()])

    def grid(self, num_steps: int, *, kind: str = "scheduler", shift: float | None = None) -> Grid:
        """The DDIM grid of the scheduler, or one uniform in log-SNR, on which eta 1 has uniform native credit."""
        if kind == "log_snr":
            if self.prediction_type != "epsilon":
                raise ConfigError(
                    "log_snr has fractional timesteps, on which a v-prediction cannot be converted to eps",
                    where="sampler.grid",
                    fix="use scheduler",
                )
            return log_snr_uniform_grid(self.scheduler.alphas_cumprod, num_steps)
        return ddim_grid_from_scheduler(self.scheduler, num_steps)
