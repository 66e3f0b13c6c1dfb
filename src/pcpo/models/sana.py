"""Sana: flow matching in a deep-compression latent, linear attention, one Gemma text encoder with an instruction."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from pcpo.errors import ConfigError
from pcpo.models.flow import FlowAdapter


class SanaAdapter(FlowAdapter):
    """`SanaPipeline` at exactly the asked resolution, as with `use_resolution_binning=False`.

    Prompts follow the pipeline's own "complex human instruction", the empty half does not. Its usual scheduler is a
    multistep solver; we take its flow sigmas, one Euler step each.
    """

    pipeline_class = "SanaPipeline"

    def native_resolution(self) -> int:
        """Picture side in pixels that the model was made for."""
        return int(self.unwrapped.config.sample_size * self.pipe.vae_scale_factor)

    @property
    def side_multiple(self) -> int:
        """What the picture side must be a multiple of: 32, whatever the VAE."""
        return math.lcm(32, super().side_multiple)

    def use_precision(self, dtype: torch.dtype, *, full: bool = False) -> None:
        """As the base class; ConfigError for fp16, where its linear attention can divide 0 by 0."""
        if dtype == torch.float16:
            raise ConfigError(
                "Sana's linear attention can be 0 / 0 in fp16", where="run.precision", fix="use bf16 or fp32"
            )
        super().use_precision(dtype, full=full)

    def encode_one(self, prompt: str) -> dict[str, Tensor]:
        """prompt_embeds [1, tokens, width], mask [1, tokens]."""
        call = inspect.signature(type(self.pipe).__call__)
        return self._encode(prompt, call.parameters["complex_human_instruction"].default)

    def encode_empty(self) -> dict[str, Tensor]:
        """The empty prompt, without the instruction."""
        return self._encode("", None)

    def _encode(self, prompt: str, instruction: list[str] | None) -> dict[str, Tensor]:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            prompt, False, device=self.device, complex_human_instruction=instruction, **self.text_length
        )
        return {"prompt_embeds": embeds, "mask": mask}

    def deterministic_scheduler(self) -> Any:
        """A DPM-Solver of first order makes our Euler steps."""
        own = self.pipe.scheduler
        return type(own).from_config(own.config, solver_order=1) if "solver_order" in own.config else own

    def pipeline_arguments(self, guidance_scale: float) -> dict[str, Any]:
        """Arguments with which `pipe(...)` samples what we sample: no binning."""
        return {**super().pipeline_arguments(guidance_scale), "use_resolution_binning": False}

    def forward(self, x: Tensor, timestep: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity [N, C, H, W]; a learned variance is dropped."""
        config = self.unwrapped.config
        out = self.backbone(
            x,
            timestep=timestep * config.timestep_scale,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["mask"],
            return_dict=False,
        )[0]
        return out.chunk(2, dim=1)[0] if config.out_channels // 2 == config.in_channels else out
