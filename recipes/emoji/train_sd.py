"""Train ``emoji-sd``: a U-Net with eps-prediction on cached latents.

Run: ``python -m recipes.emoji.train_sd``.

The text encoder trains jointly, from scratch, on the tensors that ``StableDiffusionPipeline`` feeds the
U-Net.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from recipes.emoji.common import Training, decayed, parse_arguments
from recipes.emoji.data import load
from recipes.emoji.latents import cached_latents
from recipes.emoji.tokenizer import CaptionBank, text_config, tokenizer_for
from recipes.emoji.train_vae import CHANNELS

TEXT_WIDTH = 128
BATCH = 64
STEPS = 4100


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class TextToLatent(nn.Module):
    """Text encoder and U-Net trained together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(text_config(tokenizer, TEXT_WIDTH, layers=2, heads=4, projection=TEXT_WIDTH))
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(96, 128),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,  # in this class: the number of heads
            norm_num_groups=16,
        )

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Predicted noise [N, 16, 8, 8] at integer timesteps [N] for token ids [N, 16]."""
        states = self.text_encoder(ids).last_hidden_state
        return self.unet(x_t, t, encoder_hidden_states=states).sample


def main() -> None:
    """Train or resume."""
    arguments = parse_arguments(__doc__, STEPS)
    data = load(arguments.work)
    latents, concepts, styles = cached_latents(arguments.work, data)
    tokenizer = tokenizer_for(data)
    bank = CaptionBank(data, tokenizer, arguments.seed, keyword_share=0.1)
    alphas = new_scheduler().alphas_cumprod
    # Min-SNR weights (gamma 5) for eps-prediction: high-SNR steps teach little about what is drawn
    snr = alphas / (1 - alphas)
    weight = snr.clamp(max=5.0) / snr
    weight = weight / weight.mean()
    torch.manual_seed(arguments.seed)
    model = TextToLatent(tokenizer).train()
    optimiser = torch.optim.AdamW(decayed(model, 0.01), lr=1e-3, betas=(0.9, 0.99), fused=True)
    training = Training("sd", model, arguments, optimiser, ema_decay=0.999)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (BATCH,), generator=g)
        x_0 = latents[rows, torch.randint(2, (BATCH,), generator=g)]
        eps = torch.randn(x_0.shape, generator=g)
        t = torch.randint(len(alphas), (BATCH,), generator=g)
        a = alphas[t].view(-1, 1, 1, 1)
        ids = bank.draw(concepts[rows], styles[rows], g, drop=0.1)
        pred = model(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t, ids)
        return (weight[t] * F.mse_loss(pred, eps, reduction="none").mean((1, 2, 3))).mean()

    for _ in training.run(loss_of):
        pass


if __name__ == "__main__":
    main()
