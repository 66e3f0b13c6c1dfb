"""A CLIP of random weights and a byte-level tokenizer, saved as a real model folder."""

import json
import warnings

import pytest
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


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return save_model(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return save_model(tmp_path_factory.mktemp("tiny-siglip"), kind="siglip")
