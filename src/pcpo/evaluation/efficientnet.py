"""EfficientNet-Lite0 (ImageNet) as a feature set: small, fast, and independent of every reward that ships here.

The network is the package `efficientnet-lite-pytorch` (extra `features`). Its weights are published as a pickle, which
this package does not read: `recipes/efficientnet_lite0.py` converts them once to safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pcpo.errors import ModelError, one_line
from pcpo.evaluation.features import Features, places
from pcpo.rewards.preprocess import Preprocess

ARCHITECTURE = "efficientnet-lite0"
SIDE = 224
PREPROCESS = Preprocess((SIDE, SIDE), "bicubic", None, 1.0, (127.0,) * 3, (128.0,) * 3)


class EfficientNetLite0:
    """Pooled vectors [B, 1280] of the last convolution; stages: the last block at each of five resolutions."""

    name = "efficientnet_lite0"
    unit = False

    def __init__(self, weights: str, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = _load(weights).to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor, stages: bool = False) -> Features:
        """Features of uint8 [B, 3, H, W], enlarged to 224 x 224."""
        net = self.network
        pixels = PREPROCESS(images.to(self.device))
        x = net._swish(net._bn0(net._conv_stem(pixels)))
        kept: list[Tensor] = []
        for block in net._blocks:
            previous, x = x, block(x)
            if x.shape[-1] < previous.shape[-1] and previous is not pixels:
                kept.append(previous)
        last = net._swish(net._bn1(net._conv_head(x)))
        return Features(last.mean((2, 3)).float().cpu(), places([*kept, x], pixels, None) if stages else ())


def _load(weights: str) -> Any:
    where = f"features {weights}"
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ModelError(
            "needs the package efficientnet-lite-pytorch", where=where, fix="pip install 'pcpo[features]'"
        ) from error
    if not Path(weights).is_file():
        raise ModelError("no such file", where=where, fix="make it: python recipes/efficientnet_lite0.py")
    network = EfficientNet.from_name(ARCHITECTURE)
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"is no {ARCHITECTURE} ({one_line(error)})",
            where=where,
            fix="make it: python recipes/efficientnet_lite0.py",
        ) from error
    return network


__all__ = ["EfficientNetLite0"]
