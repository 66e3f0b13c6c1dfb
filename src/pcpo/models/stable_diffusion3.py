"""Stable Diffusion 3 and 3.5: MM-DiT, flow matching, two CLIP text encoders and an optional T5."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from torch import Tensor

from pcpo.errors import ModelError
from pcpo.models.flow import JOINT_ATTENTION, FlowAdapter


class StableDiffusion3Adapter(FlowAdapter):
    """`StableDiffusion3Pipeline`, with or without its T5."""

    pipeline_class = "StableDiffusion3Pipeline"
    lora_targets = JOINT_ATTENTION

    def set_up(self) -> None:
        """Also refuse pictures that have more tokens along a side than there are position embeddings."""
        super().set_up()
        most = int(self.unwrapped.config.pos_embed_max_size)
        if self.patches > most:
            raise ModelError(
                f"resolution {self.resolution} has {self.patches} tokens along a side; the model knows {most}",
                where="model.resolution",
                fix=f"use {most * self.side_multiple} at most",
            )

    @property
    def patch(self) -> int:
        """Latent pixels along one side of a token."""
        return int(self.unwrapped.config.patch_size)

    def encode_one(self, prompt: str) -> dict[str, Tensor]:
        """prompt_embeds [1, tokens, width], pooled [1, width]."""
        with self._without_t5_advice():
            embeds, _, pooled, _ = self.pipe.encode_prompt(
                prompt, None, None, device=self.device, do_classifier_free_guidance=False, **self.text_length
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
