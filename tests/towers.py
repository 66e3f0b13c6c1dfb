"""Dual encoders of random weights with a byte-level tokenizer, saved as real model folders."""

import json

import torch

SIDE = 32


def tokenizer(max_length=12):
    """CLIP tokenizer without merges: every byte is a token, alone or at the end of a word."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length)


def save_model(folder, kind="clip", **preprocessor):
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    tok = tokenizer()
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(tok), "max_position_embeddings": 12, "bos_token_id": tok.bos_token_id}
    text |= {"eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    vision = {**size, "image_size": SIDE, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "clip":
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        else:
            model = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    settings = {
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **preprocessor}))
    return folder


def random_open_clip(vocabulary, length=12, width=16, layers=2, side=32, patch=16, embed=8):
    """Random weights in open_clip's layout."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    weights = {
        "logit_scale": torch.tensor(4.0),
        "attn_mask": torch.zeros(length, length),
        "positional_embedding": draw(length, width),
        "token_embedding.weight": draw(vocabulary, width),
        "text_projection": draw(width, embed),
        "ln_final.weight": 1 + draw(width),
        "ln_final.bias": draw(width),
        "visual.class_embedding": draw(width),
        "visual.positional_embedding": draw((side // patch) ** 2 + 1, width),
        "visual.proj": draw(width, embed),
        "visual.conv1.weight": draw(width, 3, patch, patch),
    }
    for name in ("visual.ln_pre", "visual.ln_post"):
        weights |= {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}
    for tower in ("transformer", "visual.transformer"):
        for n in range(layers):
            block = f"{tower}.resblocks.{n}"
            for name in ("ln_1", "ln_2"):
                weights |= {f"{block}.{name}.weight": 1 + draw(width), f"{block}.{name}.bias": draw(width)}
            weights |= {
                f"{block}.attn.in_proj_weight": draw(3 * width, width),
                f"{block}.attn.in_proj_bias": draw(3 * width),
            }
            for name, out, into in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 2 * width, width),
                ("mlp.c_proj", width, 2 * width),
            ):
                weights |= {f"{block}.{name}.weight": draw(out, into), f"{block}.{name}.bias": draw(out)}
    return weights


def random_image_reward(vocabulary, text=64, vision=128, layers=2, side=32, patch=16, places=40):
    """Random weights in the layout of ImageReward's own code; heads of attention are 64 wide."""
    generator = torch.Generator().manual_seed(2)
    weights = {"blip.text_encoder.embeddings.position_ids": torch.arange(places)[None]}

    def draw(*shape):
        return 0.2 * torch.randn(*shape, generator=generator)

    def linear(name, out, into):
        weights.update({f"{name}.weight": draw(out, into), f"{name}.bias": draw(out)})

    def norm(name, width):
        weights.update({f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)})

    see, read = "blip.visual_encoder", "blip.text_encoder"
    weights[f"{see}.cls_token"] = draw(1, 1, vision)
    weights[f"{see}.pos_embed"] = draw(1, (side // patch) ** 2 + 1, vision)
    weights[f"{see}.patch_embed.proj.weight"] = draw(vision, 3, patch, patch)
    weights[f"{see}.patch_embed.proj.bias"] = draw(vision)
    norm(f"{see}.norm", vision)
    weights[f"{read}.embeddings.word_embeddings.weight"] = draw(vocabulary, text)
    weights[f"{read}.embeddings.position_embeddings.weight"] = draw(places, text)
    norm(f"{read}.embeddings.LayerNorm", text)
    for n in range(layers):
        block = f"{see}.blocks.{n}"
        norm(f"{block}.norm1", vision)
        norm(f"{block}.norm2", vision)
        linear(f"{block}.attn.qkv", 3 * vision, vision)
        linear(f"{block}.attn.proj", vision, vision)
        linear(f"{block}.mlp.fc1", 2 * vision, vision)
        linear(f"{block}.mlp.fc2", vision, 2 * vision)
        block = f"{read}.encoder.layer.{n}"
        for kind, into in (("attention", text), ("crossattention", vision)):
            linear(f"{block}.{kind}.self.query", text, text)
            linear(f"{block}.{kind}.self.key", text, into)
            linear(f"{block}.{kind}.self.value", text, into)
            linear(f"{block}.{kind}.output.dense", text, text)
            norm(f"{block}.{kind}.output.LayerNorm", text)
        linear(f"{block}.intermediate.dense", 2 * text, text)
        linear(f"{block}.output.dense", text, 2 * text)
        norm(f"{block}.output.LayerNorm", text)
    linear("blip.vision_proj", 8, vision)
    linear("blip.text_proj", 8, text)
    for number, (into, out) in zip((0, 2, 4, 6, 7), ((text, 8), (8, 6), (6, 4), (4, 2), (2, 1)), strict=True):
        linear(f"mlp.layers.{number}", out, into)
    return weights
