"""Signs of reward hacking, from the pixels alone. Read them against the base model's: no value is good by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
EDGE = 0.1
LEVELS = 8
SMALL = 16
NEAR = 6.0


def edge_density(images: Tensor) -> Tensor:
    """Share of pixels on an edge [B]: texture noise raises it.

    Sobel gradient of the luma, scaled so that a step from black to white is 1, above 0.1.
    """
    weights = torch.tensor(LUMA, dtype=torch.float32).view(1, 3, 1, 1)
    luma = (images.float() / 255 * weights).sum(1, keepdim=True)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    kernels = torch.stack([across, across.T]).unsqueeze(1)
    gradient = F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), kernels)
    return (gradient.square().sum(1).sqrt() > EDGE).double().mean((1, 2))


def colour_entropy(images: Tensor) -> Tensor:
    """Entropy in bits [B] of the colours, 8 levels a channel: 0 (one colour) to 9."""
    levels = images.long() // (256 // LEVELS)
    colour = (levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2]
    shares = torch.stack([torch.bincount(row, minlength=LEVELS**3) for row in colour.flatten(1)]).double()
    shares = shares / colour[0].numel()
    return torch.special.entr(shares).sum(1) / torch.log(torch.tensor(2.0, dtype=torch.float64))


def saturation(images: Tensor) -> Tensor:
    """Mean HSV saturation (max - min) / max [B]: 0 grey, 1 pure colours; black counts as 0."""
    high, low = images.amax(1).double(), images.amin(1).double()
    return ((high - low) / high.clamp_min(1)).mean((1, 2))


def clipped(images: Tensor) -> Tensor:
    """Share of channel values at an end of the range, 0 or 255 [B]: blown-out pictures raise it."""
    return ((images == 0) | (images == 255)).double().mean((1, 2, 3))


def near_duplicate(images: Tensor) -> Tensor:
    """Whether another picture of the set is nearly the same [B], as 0 or 1: its mean is the share of such pictures.

    Root mean square difference below 6 of 255 grey levels after averaging to 16 x 16.
    """
    # one picture at a time: all large ones at once would not fit as float64
    small = torch.cat([F.adaptive_avg_pool2d(one.double(), SMALL) for one in images.split(1)]).flatten(1)
    found = torch.zeros(len(small), dtype=torch.float64)
    for start in range(0, len(small), 512):
        rows = small[start : start + 512]
        distance = torch.cdist(rows, small) / small.shape[1] ** 0.5
        distance[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
        found[start : start + 512] = (distance < NEAR).any(1).double()
    return found


MONITORS: dict[str, Callable[[Tensor], Tensor]] = {
    "edge_density": edge_density,
    "colour_entropy": colour_entropy,
    "saturation": saturation,
    "clipped": clipped,
    "near_duplicates": near_duplicate,
}


def monitor(images: Tensor) -> dict[str, float]:
    """The mean of every monitor over a set uint8 [B, 3, H, W]."""
    return {name: float(function(images).mean()) for name, function in MONITORS.items()}


__all__ = ["MONITORS", "clipped", "colour_entropy", "edge_density", "monitor", "near_duplicate", "saturation"]
