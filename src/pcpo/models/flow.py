"""What the flow-matching transformers share: the time grid, and for some of them packed latents."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pcpo.models.base import Adapter
from pcpo.samplers.grids import flow_grid, flow_grid_from_scheduler
from pcpo.types import Grid

# attention projections of a transformer that reads text and picture as two streams
JOINT_ATTENTION = (*Adapter.lora_targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class FlowAdapter(Adapter):
    """A transformer that predicts v = eps - x0 on x_t = (1 - t) x0 + t eps."""

    kind = "flow"
    backbone_name = "transformer"
    takes_text_length = True

    def native_resolution(self) -> int:
        """Picture side in pixels that the model was made for."""
        return int(self.pipe.default_sample_size * self.pipe.vae_scale_factor)

    @property
    def patches(self) -> int:
        """Tokens along one side of the picture."""
        return self.resolution // self.side_multiple

    def sigmas(self, num_steps: int) -> list[float] | None:
        """Sigmas that the pipeline gives its scheduler, before any shift; None where it leaves them to it."""
        return None

    def grid(self, num_steps: int, *, kind: str = "scheduler", shift: float | None = None) -> Grid:
        """The scheduler's sigmas, shifted by the number of tokens where it is dynamic, or the ideal shifted grid."""
        config = self.pipe.scheduler.config
        if kind == "ideal":
            own = config.get("shift") or config.get("flow_shift") or 1.0
            return flow_grid(num_steps, shift=float(own) if shift is None else shift)
        mu = self._shift_by_tokens() if config.get("use_dynamic_shifting") else None
        return flow_grid_from_scheduler(self.pipe.scheduler, num_steps, mu=mu, sigmas=self.sigmas(num_steps))

    def _shift_by_tokens(self) -> float:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        # its defaults stand in for what a scheduler was saved without, as in the pipelines
        names = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
        names |= {name: name for name in ("base_shift", "max_shift")}
        config = self.pipe.scheduler.config
        return calculate_shift(self.patches**2, **{name: config[key] for name, key in names.items() if key in config})


class PackedFlowAdapter(FlowAdapter):
    """Latents are [tokens, 4 C], every token a 2 x 2 patch of a [C, h, w] latent; sigmas fall from 1 to 1 / N."""

    lora_targets = JOINT_ATTENTION

    @property
    def patch(self) -> int:
        """Latent pixels along one side of a token."""
        return 2

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[tokens, packed channels]."""
        return (self.patches**2, self.unwrapped.config.in_channels)

    def unpack(self, latents: Tensor) -> Tensor:
        """[B, tokens, 4 C] to what the VAE takes: [B, C, h, w], or [B, C, 1, h, w] with an axis of frames."""
        return self.pipe._unpack_latents(latents, self.resolution, self.resolution, self.pipe.vae_scale_factor)

    def sigmas(self, num_steps: int) -> list[float] | None:
        """linspace(1, 1 / N, N)."""
        return np.linspace(1.0, 1 / num_steps, num_steps).tolist()
