"""What is watched beside the reward at every evaluation: how different the pictures are, and signs in their pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcpo.evaluation.diversity import perceptual_distance
from pcpo.evaluation.features import EMBEDDED, FeatureSet, load_features
from pcpo.evaluation.monitors import MONITORS

EMBEDDED_SIDE = 64
LAB_SIDE = 32
LAB = f"lab{LAB_SIDE}"

# linear sRGB -> XYZ (IEC 61966-2-1), rows divided by the white point D65
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))


class Watcher:
    """Diversity and pixel monitors of an evaluation's pictures; cheap enough for every evaluation.

    Diversity is the mean distance of two pictures of one prompt, or of two prompts' pictures where there is one of
    each. It is taken in `emoji_clip` (see `perceptual_distance`) for pictures of 64 x 64, those of the embedded models,
    on whose domain that network was trained; for others in `lab32`, which needs no network: there `emoji_clip` would
    measure nothing in particular, and a better one would have to be downloaded. `pcpo eval --features` has the choice.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self._network: FeatureSet | None = None

    def __call__(self, images: Tensor, per_prompt: int) -> dict[str, Any]:
        """Fields of the evaluation event, from pictures uint8 [P * per_prompt, 3, H, W], prompt-major.

        monitors             name -> mean over the pictures
        monitors_per_prompt  name -> [P]
        diversity_features, diversity_among   where distances were taken, and among which pictures: "prompt" or "set"
        """
        values = {name: _monitor(name, images).view(-1, per_prompt).mean(1) for name in MONITORS}
        fields: dict[str, Any] = {}
        if len(images) > 1:
            name, distance = self._distances(images)
            values = {"diversity": mean_distance(distance, per_prompt), **values}
            fields = {"diversity_features": name, "diversity_among": "prompt" if per_prompt > 1 else "set"}
        return {
            "monitors": {name: float(value.mean()) for name, value in values.items()},
            "monitors_per_prompt": {name: value.tolist() for name, value in values.items()},
            **fields,
        }

    def _distances(self, images: Tensor) -> tuple[str, Tensor]:
        """Name of the feature set, and the distance of every two pictures [B, B]."""
        if images.shape[-2:] != (EMBEDDED_SIDE, EMBEDDED_SIDE):
            return LAB, square(lab_distance(images), len(images))
        if self._network is None:
            self._network = load_features(EMBEDDED, self.device)
        stages = self._network(images, stages=True).stages
        return EMBEDDED, square(perceptual_distance(stages), len(images))


def _monitor(name: str, images: Tensor) -> Tensor:
    """One monitor of every picture [B], one picture at a time to spare memory; duplicates need the set."""
    function = MONITORS[name]
    return function(images) if name == "near_duplicates" else torch.cat([function(one) for one in images.split(1)])


def square(pairs: Tensor, size: int) -> Tensor:
    """Distances of pairs i < j [B (B - 1) / 2] as a symmetric matrix [B, B] with zeros on its diagonal."""
    out = torch.zeros(size, size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size, offset=1)
    out[rows, columns] = pairs.double().cpu()
    return out + out.T


def mean_distance(distance: Tensor, per_prompt: int) -> Tensor:
    """Mean distance [P] of two pictures of each prompt; with one picture a prompt, of it to all other prompts'."""
    if per_prompt == 1:
        return distance.sum(1) / (len(distance) - 1)
    blocks = [
        distance[start : start + per_prompt, start : start + per_prompt]
        for start in range(0, len(distance), per_prompt)
    ]
    return torch.stack(blocks).sum((1, 2)) / (per_prompt * (per_prompt - 1))


def lab_distance(images: Tensor) -> Tensor:
    """CIE 1976 colour difference of every two pictures, averaged over 32 x 32 places: [B (B - 1) / 2] float64.

    About 1 is just visible, 100 is black against white. Colours are averaged in linear light.
    """
    small = torch.cat([F.adaptive_avg_pool2d(linear(image), LAB_SIDE) for image in images.split(1)])
    lab = to_lab(small.double()).flatten(2)  # [B, 3, places]
    rows, columns = torch.triu_indices(len(lab), len(lab), offset=1)
    parts = [(lab[i] - lab[j]).norm(dim=1).mean(1) for i, j in zip(rows.split(256), columns.split(256), strict=True)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def linear(images: Tensor) -> Tensor:
    """sRGB uint8 [B, 3, H, W] as linear light in [0, 1], float32 on the CPU (IEC 61966-2-1)."""
    x = torch.arange(256, dtype=torch.float64) / 255
    table = torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return table.float()[images.cpu().int()]


def to_lab(rgb: Tensor) -> Tensor:
    """Linear sRGB [B, 3, ...] as CIELAB under D65: L in [0, 100]."""
    matrix = torch.tensor(TO_XYZ, dtype=torch.float64)
    xyz = torch.einsum("ij,bj...->bi...", matrix / matrix.sum(1, keepdim=True), rgb)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-12) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


__all__ = ["LAB", "Watcher", "lab_distance", "linear", "mean_distance", "square", "to_lab"]
