"""Train the shared autoencoder: 64 x 64 pictures to 8 x 8 x 16 latents.

Run: ``python -m recipes.emoji.train_vae``.

The latents are normalised by a batch norm without parameters and disturbed by Gaussian noise of standard
deviation ``NOISE`` in training: diffusion then sees unit variance in every channel and its small errors do
no visible harm. :func:`build` folds the normalisation into ``quant_conv``, so the exported
``AutoencoderKL`` needs ``scaling_factor=1, shift_factor=0``.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.emoji.common import Training, decayed, parse_arguments, random_flip, to_tensor
from recipes.emoji.data import EmojiData, load

CHANNELS = 16
NOISE = 0.12
BATCH = 16
STEPS = 2600


def new_vae() -> AutoencoderKL:
    """The architecture: factor 8, 2.6 M parameters."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


class Autoencoder(nn.Module):
    """``AutoencoderKL`` with the latent normalisation that training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = new_vae().to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.02)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Reconstruct [N, 3, 64, 64] through latents disturbed by ``noise`` [N, 16, 8, 8]."""
        mean = self.vae.quant_conv(self.vae.encoder(x))[:, :CHANNELS]
        z = self.norm(mean) + NOISE * noise
        return self.vae.decoder(self.vae.post_quant_conv(z))


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of pixels and, for crisp edges, of differences between neighbours at two scales."""
    loss = F.l1_loss(y, x)
    for scale in (1, 2):
        if scale > 1:
            y, x = F.avg_pool2d(y, scale), F.avg_pool2d(x, scale)
        loss = loss + F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
    return loss


def training_pictures(data: EmojiData) -> tuple[NDArray[np.uint8], Tensor]:
    """Pictures [N, 64, 64, 3] of both training styles without held-out concepts, and sampling weights [N].

    Concepts of the generators count three times.
    """
    pictures: list[NDArray[np.uint8]] = []
    weights: list[float] = []
    important = set(data.train.tolist())
    for style in (0, 1):
        seen = data.seen[data.present[data.seen, style]]
        pictures.append(data.images[seen, style])
        weights.extend(3.0 if i in important else 1.0 for i in seen.tolist())
    return np.concatenate(pictures), torch.tensor(weights)


def augment(x: Tensor, g: torch.Generator) -> Tensor:
    """Mirror, shift by up to 3 pixels, and swap colour channels of a quarter of the pictures."""
    x = random_flip(x, g)
    dy, dx = torch.randint(0, 7, (2,), generator=g).tolist()
    x = F.pad(x, (3, 3, 3, 3), value=1.0)[..., dy : dy + 64, dx : dx + 64]
    swap = torch.rand(len(x), 1, 1, 1, generator=g) < 0.25
    return torch.where(swap, x[:, torch.randperm(3, generator=g)], x)


def build(work: Path) -> AutoencoderKL:
    """Load the trained average and fold the latent normalisation and the noise level into ``quant_conv``."""
    tensors = load_file(work / "vae.safetensors")
    model = Autoencoder()
    model.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema/")})
    vae, norm = model.vae.to(memory_format=torch.contiguous_format), model.norm
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    std = (variance + norm.eps).sqrt()
    with torch.no_grad():
        conv = vae.quant_conv
        conv.weight[:CHANNELS] /= std[:, None, None, None]
        conv.bias[:CHANNELS] = (conv.bias[:CHANNELS] - mean) / std
        conv.weight[CHANNELS:] = 0.0
        conv.bias[CHANNELS:] = 2 * math.log(NOISE)
    return vae.eval()


def main() -> None:
    """Train or resume."""
    arguments = parse_arguments(__doc__, STEPS, threads=2)
    pictures, weights = training_pictures(load(arguments.work))
    torch.manual_seed(arguments.seed)
    model = Autoencoder().train()
    optimiser = torch.optim.AdamW(decayed(model, 1e-4), lr=1.5e-3, betas=(0.9, 0.99), fused=True)
    training = Training("vae", model, arguments, optimiser, ema_decay=0.998)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        rows = torch.multinomial(weights, BATCH, generator=g).numpy()
        x = augment(to_tensor(pictures[rows]), g).contiguous(memory_format=torch.channels_last)
        y = model(x, torch.randn(BATCH, CHANNELS, 8, 8, generator=g))
        return reconstruction_loss(y, x)

    for _ in training.run(loss_of, every=100):
        pass


if __name__ == "__main__":
    main()
