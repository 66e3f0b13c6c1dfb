"""The picture preprocessing that a model folder asks for (preprocessor_config.json), in torch alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcpo.errors import RewardError

RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's filter numbers


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, rescale, normalise: uint8 [B, 3, H, W] to float32 [B, 3, h, w].

    resize  None, an int (the shorter side, aspect kept) or (height, width)
    crop    None or (height, width)
    """

    resize: int | tuple[int, int] | None
    mode: str
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, where: str) -> Preprocess:
        """Read what an image processor of transformers saved; RewardError for what is not known here."""
        try:
            resample = config.get("resample", 3)
            if config.get("do_resize", True) and resample not in RESAMPLE:
                raise ValueError(f"resample {resample}")
            normalize = config.get("do_normalize", True)
            return cls(
                resize=_size(config["size"]) if config.get("do_resize", True) else None,
                mode=RESAMPLE.get(resample, "bicubic"),
                crop=_pair(config["crop_size"]) if config.get("do_center_crop") else None,
                scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
                mean=_triple(config["image_mean"]) if normalize else (0.0, 0.0, 0.0),
                std=_triple(config["image_std"]) if normalize else (1.0, 1.0, 1.0),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RewardError(
                f"preprocessor configuration cannot be used ({type(error).__name__}: {error})",
                where=where,
                fix="save the model's image processor again, with size, crop_size, image_mean and image_std",
            ) from error

    def __call__(self, images: Tensor) -> Tensor:
        """Runs on the device of ``images``; ValueError if a crop is larger than the picture."""
        x = images.float()
        if self.resize is not None:
            x = self._resize(x, self.resize)
        if self.crop is not None:
            x = _centre_crop(x, *self.crop)
        mean = torch.tensor(self.mean, device=x.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(1, 3, 1, 1)
        return (x * self.scale - mean) / std

    def _resize(self, x: Tensor, to: int | tuple[int, int]) -> Tensor:
        height, width = x.shape[-2:]
        if isinstance(to, int):
            short = min(height, width)
            to = (int(to * height / short), int(to * width / short))
        for size in ((height, to[1]), to):
            if size != tuple(x.shape[-2:]):
                x = self._resize_axis(x, size)
        return x

    def _resize_axis(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize one axis as Pillow does, which the models were trained with.

        Pillow resizes the rows, rounds and clips them to bytes, then the columns. In one step, bicubic
        overshoot would pass from one axis to the other and change edges by up to ten grey levels.
        """
        smooth = self.mode != "nearest-exact"
        x = F.interpolate(x, size, mode=self.mode, antialias=smooth, align_corners=False if smooth else None)
        return (x + 0.5).floor().clamp(0, 255)  # halves go up, as in Pillow


def _centre_crop(x: Tensor, height: int, width: int) -> Tensor:
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    if top < 0 or left < 0:
        raise ValueError(f"crop {height} x {width} of a picture of {x.shape[-2]} x {x.shape[-1]}")
    return x[..., top : top + height, left : left + width]


def _size(value: Any) -> int | tuple[int, int]:
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        return int(value["shortest_edge"])
    return int(value) if isinstance(value, int) else _pair(value)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value["height"]), int(value["width"])


def _triple(values: Any) -> tuple[float, ...]:
    triple = tuple(float(value) for value in values)
    if len(triple) != 3:
        raise ValueError(f"{len(triple)} channels instead of 3")
    return triple


__all__ = ["Preprocess"]
