"""The adapter between a diffusers pipeline and the trainer: encode, predict, decode, grid.

A family is a small subclass that says where its parts are and how its backbone is called. The pipeline's own code does
the encoding and the decoding, so what we train is what `pipe(...)` samples.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pcpo.errors import ConfigError, ModelError
from pcpo.models.embeddings import DiskEmbeddings
from pcpo.models.precision import cast, part_dtypes
from pcpo.types import Grid


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: named tensors [P, ...] and their unconditional counterparts [1, ...]."""

    prompt: dict[str, Tensor]
    empty: dict[str, Tensor]

    def rows(self, index: Tensor, guided: bool) -> dict[str, Tensor]:
        """Rows for N pictures; with `guided` the unconditional rows come first: [2N, ...]."""
        out = {name: value[index] for name, value in self.prompt.items()}
        if guided:
            n = len(index)
            out = {k: torch.cat([self.empty[k].expand(n, *v.shape[1:]), v]) for k, v in out.items()}
        return out


def pad_tokens(rows: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The same conditioning [1, tokens, ...] with zeros after the last token, up to the longest; pooled rows stay."""
    out = [dict(row) for row in rows]
    for name in rows[0]:
        longest = max(row[name].shape[1] for row in rows)
        for row in out:
            value = row[name]
            if value.shape[1] < longest:
                missing = value.new_zeros(1, longest - value.shape[1], *value.shape[2:])
                row[name] = torch.cat([value, missing], dim=1)
    return out


class Adapter(ABC):
    """Base of the model families.

    `backbone` is the network that is tuned; everything else is frozen. Predictions are float32, in the sampler's terms:
    eps for diffusion, velocity for flow. Settings that are None are the pipeline's own. With `offload`, text encoders
    and VAE are on the device only while they work, and the backbone comes there when it is first called.
    """

    pipeline_class: ClassVar[str]
    kind: ClassVar[str]
    backbone_name: ClassVar[str]
    takes_text_length: ClassVar[bool] = False
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(
        self,
        pipe: Any,
        device: torch.device | str = "cpu",
        resolution: int | None = None,
        max_sequence_length: int | None = None,
        *,
        offload: bool = False,
    ) -> None:
        if max_sequence_length is not None and not self.takes_text_length:
            raise ConfigError(
                "prompts have a fixed length in this family, it has no T5",
                where="model.max_sequence_length",
                fix="drop it",
            )
        self.pipe = pipe
        self.text_length = {"max_sequence_length": max_sequence_length} if max_sequence_length is not None else {}
        self.path = str(pipe.config.get("_name_or_path") or type(pipe).__name__)
        self.device = torch.device(device)
        self.backbone: nn.Module = getattr(pipe, self.backbone_name)
        self.offload = offload
        for part in self.parts().values():
            part.requires_grad_(False).eval().to("cpu" if offload else self.device)
        self._placed = not offload
        self.resolution = resolution or self.native_resolution()
        self.autocast: torch.dtype | None = None
        self._dropped = False
        self.embeddings: dict[str | None, dict[str, Tensor]] | DiskEmbeddings = {}
        self._frozen_copy: nn.Module | None = None
        self.set_up()

    # what a family defines

    @abstractmethod
    def native_resolution(self) -> int:
        """Picture side in pixels that the model was made for."""

    @abstractmethod
    def encode_one(self, prompt: str) -> dict[str, Tensor]:
        """Conditioning tensors [1, ...] of one prompt, from the pipeline's own encoder."""

    @abstractmethod
    def forward(self, x: Tensor, timestep: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The backbone's raw output [N, ...] for latents x [N, ...], timestep [N] and conditioning rows."""

    @abstractmethod
    def grid(self, num_steps: int, *, kind: str = "scheduler", shift: float | None = None) -> Grid:
        """The time grid: `kind` "scheduler" is what `pipe(...)` uses; flow has "ideal", diffusion "log_snr"."""

    # what they share, and a family may replace

    def set_up(self) -> None:
        """Check the parts and make what the family needs besides them. Raises ModelError."""
        if self.resolution % self.side_multiple:
            raise ModelError(
                f"resolution {self.resolution} is not a multiple of {self.side_multiple}", where="model.resolution"
            )

    def encode_empty(self) -> dict[str, Tensor]:
        """Conditioning tensors [1, ...] of the unconditional half of classifier-free guidance."""
        return self.encode_one("")

    def deterministic_scheduler(self) -> Any:
        """The scheduler with which `pipe(...)` takes the steps of our samplers without noise."""
        return self.pipe.scheduler

    def pipeline_arguments(self, guidance_scale: float) -> dict[str, Any]:
        """Arguments with which `pipe(...)` samples what we sample, besides prompts, size, steps and noise."""
        return {"guidance_scale": guidance_scale, **self.text_length}

    def unpack(self, latents: Tensor) -> Tensor:
        """Latents [B, ...] as the VAE takes them, [B, C, h, w]."""
        return latents

    @property
    def patch(self) -> int:
        """Latent pixels along one side of a token."""
        return 1

    @property
    def side_multiple(self) -> int:
        """What the picture side must be a multiple of."""
        return int(self.pipe.vae_scale_factor) * self.patch

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Latent shape of one picture."""
        side = self.resolution // self.pipe.vae_scale_factor
        return (self.unwrapped.config.in_channels, side, side)

    @property
    def unwrapped(self) -> Any:
        """The backbone itself, without the distributed engine's wrappers."""
        module = self.backbone
        while hasattr(module, "module") and isinstance(module.module, nn.Module):
            module = module.module
        return module

    def parts(self) -> dict[str, nn.Module]:
        """Backbone, VAE and text encoders that are there, by their names in the pipeline."""
        return {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}

    @property
    def text_encoders(self) -> list[str]:
        """Names of the parts that are needed to encode prompts only."""
        return [name for name in self.parts() if name not in (self.backbone_name, "vae")]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of P prompts, float32; each prompt is encoded once, alone, and remembered.

        Where prompts have their own numbers of tokens, all are padded with zeros to the longest, masks too.
        """
        found = self.encode_ahead(prompts)
        rows = [{name: value.to(self.device).float() for name, value in found[key].items()} for key in (None, *prompts)]
        empty, *rows = pad_tokens(rows)
        return Conditioning({name: torch.cat([row[name] for row in rows]) for name in empty}, empty)

    @torch.no_grad()
    def encode_ahead(self, prompts: Sequence[str]) -> dict[str | None, dict[str, Tensor]]:
        """Encode what has not been encoded yet; returns the tensors [1, ...] of every prompt, and of None, on the CPU.

        Raises ModelError when a prompt is new and the text encoders have been dropped.
        """
        kept = {key: self.embeddings.get(key) for key in (None, *prompts)}
        found = {key: value for key, value in kept.items() if value is not None}
        missing = [key for key in kept if key not in found]
        if missing and self._dropped:
            raise ModelError(
                f"the text encoders were dropped before this prompt was encoded: {missing[0]!r}",
                where="run.offload",
                fix="use run.offload=cpu",
            )
        if missing:
            with self._on_device(*self.text_encoders):
                for key in missing:
                    rows = self.encode_empty() if key is None else self.encode_one(key)
                    found[key] = self.embeddings[key] = {name: value.cpu() for name, value in rows.items()}
        return found

    def drop_text_encoders(self) -> None:
        """Free the text encoders; only prompts that have been encoded can be used from now on."""
        for name in self.text_encoders:
            setattr(self.pipe, name, None)
        self._dropped = True

    @contextlib.contextmanager
    def _on_device(self, *names: str) -> Iterator[None]:
        """Inside, these parts are on the device; where parts are offloaded they go back to the CPU."""
        if not self.offload:
            yield
            return
        parts = [getattr(self.pipe, name) for name in names]
        for part in parts:
            part.to(self.device)
        try:
            yield
        finally:
            for part in parts:
                part.to("cpu")

    def predict(self, x: Tensor, timestep: Tensor, cond: Conditioning, index: Tensor, guidance_scale: float) -> Tensor:
        """Guided prediction [N, ...] float32.

        x [N, ...] latents; timestep [N]; index [N] rows of `cond`. Classifier-free guidance (2207.12598) is one batched
        call: f = f_empty + scale (f_prompt - f_empty); scale <= 1 calls the conditional half only.
        """
        guided = guidance_scale > 1
        rows = cond.rows(index, guided)
        if guided:
            x, timestep = torch.cat([x, x]), torch.cat([timestep, timestep])
        out = self.call(x, timestep, rows)
        if not guided:
            return out
        empty, prompt = out.chunk(2)
        return self.guide(prompt, empty, guidance_scale)

    def guide(self, prompt: Tensor, empty: Tensor, scale: float) -> Tensor:
        """Guided prediction [N, ...] from the two halves."""
        return empty + scale * (prompt - empty)

    def place(self) -> nn.Module:
        """The backbone, on its device."""
        if not self._placed:
            self.backbone.to(self.device)
            self._placed = True
        return self.backbone

    def call(self, x: Tensor, timestep: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """One backbone call under the configured autocast, float32 out; timesteps stay so: bf16 cannot count them."""
        self.place()
        inputs = x
        if self.autocast is not None:
            inputs, cond = x.to(self.autocast), {name: value.to(self.autocast) for name, value in cond.items()}
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            out = self.forward(inputs, timestep, cond)
        return self.prediction(out.float(), x, timestep)

    def prediction(self, out: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        """The backbone's raw output as the sampler's prediction, all float32 [N, ...]."""
        return out

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] uint8 on the CPU from final latents [B, ...], by the pipeline's VAE."""
        with self._on_device("vae"):
            images = self.to_pictures(latents).float()
        return (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).cpu()

    def to_pictures(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] from final latents [B, ...]: latents / scaling_factor + shift_factor."""
        vae = self.pipe.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        latents = self.unpack(latents) / vae.config.scaling_factor + shift
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0]

    def use_precision(self, dtype: torch.dtype, *, full: bool = False) -> None:
        """Compute in `dtype`, with frozen weights in it; `full`: the backbone is tuned and keeps float32 weights.

        A LoRA stays float32, and so do latents, means and log-probs.
        """
        self.autocast = None if dtype == torch.float32 else dtype
        # queries in half precision meet norms in float32 where all is tuned: torch says that no fused kernel does that
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        wanted = part_dtypes(dtype, self.backbone_name if full else None)
        for name, part in self.parts().items():
            target = wanted.get(name, dtype)
            if next(part.parameters()).dtype != target:
                cast(part, target)

    def replace_backbone(self, backbone: nn.Module) -> None:
        """Use other backbone weights, frozen."""
        self.backbone = backbone.requires_grad_(False).eval().to(self.device)
        setattr(self.pipe, self.backbone_name, self.backbone)

    def keep_reference(self) -> None:
        """Keep a frozen copy of the backbone as the reference of a full fine-tuning."""
        self._frozen_copy = copy.deepcopy(self.unwrapped).requires_grad_(False)

    def compile(self) -> None:
        """Let torch compile the backbone at its next call, block by block where diffusers knows what is repeated.

        Sampling and training use the same code, so the first log-ratio of a rollout stays 0.
        """
        module: Any
        for module in (self.unwrapped, self._frozen_copy):
            if module is not None and getattr(module, "_repeated_blocks", None):
                module.compile_repeated_blocks()
            elif module is not None:
                module.compile()

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, predictions come from the model before tuning: LoRA off, or the frozen copy."""
        tuned = self.backbone
        if self._frozen_copy is not None:
            self.backbone = self._frozen_copy
            try:
                yield
            finally:
                self.backbone = tuned
            return
        self.unwrapped.disable_adapters()
        try:
            yield
        finally:
            self.unwrapped.enable_adapters()
