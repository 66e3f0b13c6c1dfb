"""ImageReward from converted weights, against its own forward pass written out on the weights as published."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pcpo.errors import RewardError
from pcpo.rewards import check_reward, load_reward
from pcpo.rewards.base import evaluate
from pcpo.rewards.checker import PROMPTS, probe_pictures
from pcpo.rewards.image_reward_weights import save_converted
from towers import random_image_reward, tokenizer


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Weights as published, and the folder they were converted to."""
    folder, tok = tmp_path_factory.mktemp("image-reward"), tokenizer()
    weights = random_image_reward(len(tok))
    save_converted(weights, folder)
    tok.save_pretrained(folder)
    return weights, folder


def linear(x, weights, name):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(x, weights, name, eps):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def attend(q, k, v, mask=None):
    """Softmax attention with heads of 64 on [B, L, d]; mask [B, L] of the keys that count."""
    q, k, v = (x.unflatten(-1, (-1, 64)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / 8
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def original_scores(weights, pixels, tokens, mask):
    """The published model in float64: a ViT, a BERT whose every layer looks at it, five linear layers."""
    w = {key: value.double() for key, value in weights.items() if value.is_floating_point()}
    see, read = "blip.visual_encoder", "blip.text_encoder"
    patch = w[f"{see}.patch_embed.proj.weight"]
    x = F.conv2d(pixels.double(), patch, w[f"{see}.patch_embed.proj.bias"], stride=patch.shape[-1])
    x = torch.cat([w[f"{see}.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + w[f"{see}.pos_embed"]
    for n in range(2):
        block = f"{see}.blocks.{n}"
        q, k, v = linear(norm(x, w, f"{block}.norm1", 1e-6), w, f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v), w, f"{block}.attn.proj")
        y = F.gelu(linear(norm(x, w, f"{block}.norm2", 1e-6), w, f"{block}.mlp.fc1"))
        x = x + linear(y, w, f"{block}.mlp.fc2")
    picture = norm(x, w, f"{see}.norm", 1e-6)
    h = w[f"{read}.embeddings.word_embeddings.weight"][tokens]
    h = h + w[f"{read}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    h = norm(h, w, f"{read}.embeddings.LayerNorm", 1e-12)
    for n in range(2):
        block = f"{read}.encoder.layer.{n}"
        for kind, over, seen in (("attention", None, mask), ("crossattention", picture, None)):
            over = h if over is None else over
            q = linear(h, w, f"{block}.{kind}.self.query")
            k, v = (linear(over, w, f"{block}.{kind}.self.{name}") for name in ("key", "value"))
            y = linear(attend(q, k, v, seen), w, f"{block}.{kind}.output.dense")
            h = norm(y + h, w, f"{block}.{kind}.output.LayerNorm", 1e-12)
        y = linear(F.gelu(linear(h, w, f"{block}.intermediate.dense")), w, f"{block}.output.dense")
        h = norm(y + h, w, f"{block}.output.LayerNorm", 1e-12)
    score = h[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = linear(score, w, f"mlp.layers.{number}")
    return (score[:, 0] - 0.16717362830052426) / 1.0333394966054072


def values(reward):
    return evaluate(reward, probe_pictures(), PROMPTS, [{}] * 6).values


def test_the_converted_model_scores_as_the_original(converted):
    weights, folder = converted
    reward = load_reward("image_reward", model=str(folder), batch_size=4)
    tokens = tokenizer()(list(PROMPTS), padding="max_length", max_length=35, truncation=True, return_tensors="pt")
    pixels = reward.preprocess(probe_pictures())
    expected = original_scores(weights, pixels, tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(values(reward).double(), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-2
    assert check_reward(reward) == []


def test_the_prompt_counts(converted):
    reward = load_reward("image_reward", model=str(converted[1]))
    pictures = probe_pictures()[:2]
    assert (reward(pictures, ["a cat"] * 2, [{}] * 2) != reward(pictures, ["a car"] * 2, [{}] * 2)).all()


def test_low_precision_is_near(converted):
    full, low = (values(load_reward("image_reward", model=str(converted[1]), dtype=d)) for d in ("float32", "bfloat16"))
    assert 0 < (full - low).abs().max() < 0.1 * full.abs().max()


def without(key):
    return lambda weights: {name: value for name, value in weights.items() if name != key}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("blip.visual_encoder.cls_token"), "class_embedding"),
        (without("mlp.layers.4.weight"), "mlp.layers.4.weight"),
        (lambda weights: {}, "KeyError"),
        (lambda weights: weights | {"blip.more": torch.zeros(1)}, "more"),
        (lambda weights: weights | {"mlp.layers.8.weight": torch.zeros(1, 3)}, "mlp.layers.8.bias|shape"),
    ],
    ids=["no-class-token", "no-weight", "empty", "one-more", "no-chain"],
)
def test_weights_of_another_model(converted, tmp_path, damage, message):
    with pytest.raises(RewardError, match=rf"not the weights of ImageReward .*({message})"):
        save_converted(damage(converted[0]), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_model_of_another_kind(clip_folder):
    with pytest.raises(RewardError, match=r"give a folder with config\.json|weights are missing"):
        load_reward("image_reward", model=str(clip_folder))
