"""Captions and the small CLIP tokenizer that all three models share."""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from recipes.emoji.data import STYLE_WORDS, EmojiData

MAX_LENGTH = 16
VOCABULARY = 1500


def new_tokenizer(corpus: Iterable[str]) -> CLIPTokenizer:
    """Train a byte-level BPE by CLIP's rules; every byte has a token, so no text is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    table = json.loads(bpe.to_str())["model"]
    vocabulary: dict[str, int] = table["vocab"]
    for character in alphabet:  # the trainer adds only the word-final forms that it met
        vocabulary.setdefault(character + "</w>", len(vocabulary))
    # CLIP's convention: begin and end are the last two ids, and padding repeats the end
    vocabulary["<|startoftext|>"] = len(vocabulary)
    vocabulary["<|endoftext|>"] = len(vocabulary)
    merges = [tuple(pair) for pair in table["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def corpus(data: EmojiData) -> list[str]:
    """Names, repeated so that their words become single tokens, then keywords and style words."""
    generator = set(data.train.tolist())
    names = [name for i, name in enumerate(data.names) for _ in range(20 if i in generator else 3)]
    return names + [w for words in data.keywords for w in words] + list(STYLE_WORDS.values()) * 500 + ["a"] * 500


def tokenizer_for(data: EmojiData) -> CLIPTokenizer:
    """The tokenizer of the recipe: deterministic, so each script builds its own."""
    return new_tokenizer(corpus(data))


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int, heads: int, projection: int) -> CLIPTextConfig:
    """Configuration of a small CLIP text encoder that fits ``tokenizer``."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=projection,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def article(name: str) -> str:
    """``name`` after "a" or "an"."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def draw_caption(data: EmojiData, concept: int, style: str, g: torch.Generator, keyword_share: float) -> str:
    """Draw one caption: the name, sometimes with an article, the style word or up to three keywords."""
    u = torch.rand(4, generator=g).tolist()
    name, words = data.names[concept], data.keywords[concept]
    if u[0] < keyword_share and words:
        count = 1 + int(u[1] * 3)
        chosen = [words[i] for i in torch.randperm(len(words), generator=g)[:count].tolist()]
        caption = ", ".join(chosen if u[2] < 0.5 else [name, *chosen])
    else:
        caption = article(name) if u[1] < 0.2 else name
    return f"{caption}, {STYLE_WORDS[style]}" if u[3] < 0.4 else caption


class CaptionBank:
    """Pre-tokenised captions: ``draw`` is then an array lookup instead of a tokenizer call per step."""

    def __init__(
        self, data: EmojiData, tokenizer: CLIPTokenizer, seed: int, keyword_share: float, variants: int = 24
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        captions = [
            draw_caption(data, concept, style, g, keyword_share)
            for concept in range(len(data.names))
            for style in STYLE_WORDS
            for _ in range(variants)
        ]
        ids = encode(tokenizer, captions)
        self.variants = variants
        self.ids = ids.reshape(len(data.names), len(STYLE_WORDS), variants, -1)
        self.empty = encode(tokenizer, [""])[0]

    def draw(self, concepts: Tensor, styles: Tensor, g: torch.Generator, drop: float = 0.0) -> Tensor:
        """Token ids [N, 16] of one caption each; a share ``drop`` is the empty caption."""
        ids = self.ids[concepts, styles, torch.randint(self.variants, (len(concepts),), generator=g)]
        dropped = torch.rand(len(concepts), 1, generator=g) < drop
        return torch.where(dropped, self.empty, ids)


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [N, 16], padded exactly as the pipelines pad."""
    batch = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    return torch.as_tensor(batch.input_ids)
