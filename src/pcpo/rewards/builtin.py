"""Rewards that are one formula on the pixels. All take uint8 [B, 3, H, W] and return float32 [B]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from pcpo.data.images import to_pil

JPEG_QUALITY = 95


def jpeg_incompressibility(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """Size of the picture as a JPEG of quality 95, in kB (1000 bytes): more detail is better (2305.13301)."""
    return torch.tensor([_jpeg_bytes(image) / 1000 for image in images], dtype=torch.float32)


def jpeg_compressibility(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """Minus `jpeg_incompressibility`: less detail is better (2305.13301)."""
    return -jpeg_incompressibility(images, prompts, metadata)


def colorfulness(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """Colourfulness M3 of Hasler and Suesstrunk (2003), on sRGB values 0..255.

    rg = R - G, yb = (R + G)/2 - B;  M = sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2)

    The unit is the paper's: 0 not colourful, 15 slightly, 33 moderately, 45 averagely, 59 quite, 82 highly,
    109 extremely. Grey pictures give exactly 0; variances are over the pixels of one picture (population).
    """
    red, green, blue = images.float().flatten(2).unbind(1)
    mean_rg, var_rg = _moments(red - green)
    mean_yb, var_yb = _moments((red + green) / 2 - blue)
    spread = (var_rg + var_yb).sqrt()
    shift = (mean_rg.square() + mean_yb.square()).sqrt()
    return (spread + 0.3 * shift).float()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of x [B, pixels], float64.

    The entries are multiples of 1/2 below 2^9, so both sums are exact in any order: a picture's value does
    not depend on the batch it is in.
    """
    mean = x.mean(dim=1, dtype=torch.float64)
    square = x.square().mean(dim=1, dtype=torch.float64)
    return mean, (square - mean.square()).clamp_min(0)


def _jpeg_bytes(image: Tensor) -> int:
    buffer = BytesIO()
    to_pil(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.tell()


__all__ = ["colorfulness", "jpeg_compressibility", "jpeg_incompressibility"]
