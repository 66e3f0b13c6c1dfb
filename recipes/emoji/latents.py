"""Encode the pictures once: diffusion trains on cached latents only.

Run: ``python -m recipes.emoji.latents``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.emoji import train_vae
from recipes.emoji.common import to_tensor
from recipes.emoji.data import EmojiData, load

ONE_SIDED = {"right arrow", "check mark button", "musical note"}  # a mirror would make them wrong


@torch.no_grad()
def reconstruct(work: Path, data: EmojiData) -> None:
    """Write ``reconstructions.safetensors``, uint8 [N, 2 styles, 3, 64, 64]: for the scorer."""
    vae = train_vae.build(work)
    rows = []
    for style in (0, 1):
        parts = []
        for x in to_tensor(data.images[:, style]).split(64):
            y = vae(x, sample_posterior=True, generator=torch.Generator().manual_seed(style)).sample
            parts.append(((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
        rows.append(torch.cat(parts))
    save_file({"images": torch.stack(rows, 1).contiguous()}, work / "reconstructions.safetensors")


@torch.no_grad()
def cached_latents(work: Path, data: EmojiData) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents [M, 2, 16, 8, 8] (plain and mirrored), concept indices [M] and style indices [M].

    The posterior mean; written to ``latents.safetensors`` on the first call.
    """
    path = work / "latents.safetensors"
    if not path.exists():
        vae = train_vae.build(work)
        pairs = [(c, s) for c in data.train.tolist() for s in (0, 1) if data.present[c, s]]
        concepts, styles = torch.tensor(pairs).unbind(1)
        x = to_tensor(data.images[concepts.numpy(), styles.numpy()])
        keeps_side = torch.tensor([data.names[c] in ONE_SIDED for c, _ in pairs])
        mirrored = torch.where(keeps_side[:, None, None, None], x, x.flip(-1))
        both = [torch.cat([vae.encode(p).latent_dist.mean for p in side.split(64)]) for side in (x, mirrored)]
        tensors = {
            "latents": torch.stack(both, 1).contiguous(),
            "concepts": concepts.contiguous(),
            "styles": styles.contiguous(),
        }
        save_file(tensors, path)
    tensors = load_file(path)
    return tensors["latents"], tensors["concepts"], tensors["styles"]


def main() -> None:
    """Write latents and reconstructions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/pcpo/emoji")
    work = parser.parse_args().work
    data = load(work)
    latents, _, _ = cached_latents(work, data)
    if not (work / "reconstructions.safetensors").exists():
        reconstruct(work, data)
    print(f"latents {tuple(latents.shape)}, mean {latents.mean():.3f}, std {latents.std():.3f}")


if __name__ == "__main__":
    main()
