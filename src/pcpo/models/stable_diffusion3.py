"""Stable Diffusion 3 and 3.5: MM-DiT, flow matching, two CLIP text encoders and an optional T5."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from torch import Tensor

from pcpo.models.base import Adapter
from pcpo.samplers.grids import flow_grid, flow_grid_from_scheduler
from pcpo.types import Grid


class StableDiffusion3Adapter(Adapter):
    """`StableDiffusion3Pipeline`; x_t = (1 - t) x0 + t eps, the backbone predicts v = eps - x0."""

    pipeline_class = "StableDiffusion3Pipeline"
    kind = "flow"
    backbone_name = "transformer"
    lora_targets = (
        *Adapter.lora_targets,
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )

    def native_resolution(self) -> int:
        """Picture side in pixels that the model was made for."""
        return int(self.pipe.default_sample_size * self.pipe.vae_scale_factor)

    def encode_one(self, prompt: str) -> dict[str, Tensor]:
        """prompt_embeds [1, tokens, width], pooled [1, width]."""
        length = {"max_sequence_length": self.max_sequence_length} if self.max_sequence_length else {}
        with self._without_t5_advice():
            embeds, _, pooled, _ = self.pipe.encode_prompt(
                prompt, None, None, device=self.device, do_classifier_free_guidance=False, **length
            )
        return {"prompt_embeds": embeds, "pooled": pooled}

    @contextlib.contextmanager
    def _without_t5_advice(self) -> Iterator[None]:
        """The pipeline warns of a prompt cut short for the T5; say nothing where that T5 has no layers to read it."""
        t5 = getattr(self.pipe, "text_encoder_3", None)
        logger = logging.getLogger(type(self.pipe).__module__)
        level = logger.level
        if t5 is not None and t5.config.num_layers == 0:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)

    def forward(self, x: Tensor, timestep: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity [N, C, H, W]."""
        return self.backbone(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]

    def grid(self, num_steps: int, *, kind: str = "scheduler", shift: float | None = None) -> Grid:
        """The scheduler's sigmas, or the ideal shifted grid."""
        scheduler = self.pipe.scheduler
        if kind == "ideal":
            return flow_grid(num_steps, shift=shift if shift is not None else float(scheduler.config.shift))
        return flow_grid_from_scheduler(scheduler, num_steps)
