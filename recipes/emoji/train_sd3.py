"""Train ``emoji-sd3``: a flow-matching MM-DiT on cached latents.

Run: ``python -m recipes.emoji.train_sd3``.

x_t = (1 - t) x_0 + t eps, the target is v = eps - x_0, the model is fed 1000 t.  Both text encoders train
jointly, from scratch, on the tensors of ``StableDiffusion3Pipeline.encode_prompt`` without T5: 16 CLIP
tokens, then as many zero tokens as the caller's ``max_sequence_length`` says (256 by default).  Training
varies that number, so that the picture does not depend on it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from recipes.emoji.common import Training, decayed, parse_arguments
from recipes.emoji.data import load
from recipes.emoji.latents import cached_latents
from recipes.emoji.tokenizer import CaptionBank, text_config, tokenizer_for
from recipes.emoji.train_vae import CHANNELS

TEXT_WIDTHS = (128, 64)
JOINT = sum(TEXT_WIDTHS)
BATCH = 48
ZEROS = (1, 4, 16)  # zero tokens in T5's place
LONG_ZEROS, LONG_EVERY, LONG_BATCH = 256, 10, 16  # the expensive default, seen often enough
STEPS = 4050


class TextToLatentFlow(nn.Module):
    """Two text encoders and the transformer trained together."""

    def __init__(self, tokenizer: CLIPTokenizer, width: int = 144, layers: int = 5, heads: int = 4) -> None:
        super().__init__()
        wide, narrow = TEXT_WIDTHS
        self.text_encoder = CLIPTextModelWithProjection(text_config(tokenizer, wide, 2, 4, projection=wide))
        self.text_encoder_2 = CLIPTextModelWithProjection(text_config(tokenizer, narrow, 2, 4, projection=narrow))
        self.transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=layers,
            attention_head_dim=width // heads,
            num_attention_heads=heads,
            joint_attention_dim=JOINT,
            caption_projection_dim=width,
            pooled_projection_dim=JOINT,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor, zeros: int) -> Tensor:
        """Predicted velocity [N, 16, 8, 8] at times [N] in [0, 1], token ids [N, 16], so many zero tokens."""
        outs = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        # the pipeline takes the last layer but one, and appends zeros in T5's place
        states = torch.cat([out.hidden_states[-2] for out in outs], dim=-1)
        states = torch.cat([states, states.new_zeros(len(ids), zeros, JOINT)], dim=1)
        pooled = torch.cat([out.text_embeds for out in outs], dim=-1)
        return self.transformer(x_t, states, pooled, 1000 * t).sample


def main() -> None:
    """Train or resume."""
    arguments = parse_arguments(__doc__, STEPS)
    data = load(arguments.work)
    latents, concepts, styles = cached_latents(arguments.work, data)
    tokenizer = tokenizer_for(data)
    bank = CaptionBank(data, tokenizer, arguments.seed, keyword_share=0.1)
    torch.manual_seed(arguments.seed)
    model = TextToLatentFlow(tokenizer).train()
    optimiser = torch.optim.AdamW(decayed(model, 0.01), lr=1e-3, betas=(0.9, 0.99), fused=True)
    training = Training("sd3", model, arguments, optimiser, ema_decay=0.999)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        long = step % LONG_EVERY == 0
        count = LONG_BATCH if long else BATCH
        zeros = LONG_ZEROS if long else ZEROS[step % len(ZEROS)]
        rows = torch.randint(len(latents), (count,), generator=g)
        x_0 = latents[rows, torch.randint(2, (count,), generator=g)]
        eps = torch.randn(x_0.shape, generator=g)
        t = torch.randn(count, generator=g).add(0.4).sigmoid()  # logit-normal, towards noise as shift 3 samples there
        s = t.view(-1, 1, 1, 1)
        ids = bank.draw(concepts[rows], styles[rows], g, drop=0.1)
        return F.mse_loss(model((1 - s) * x_0 + s * eps, t, ids, zeros), eps - x_0)

    for _ in training.run(loss_of):
        pass


if __name__ == "__main__":
    main()
