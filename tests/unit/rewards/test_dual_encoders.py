"""PickScore, SigLIP, HPSv2 and the aesthetic head, each against its definition computed by the model directly."""

import json
import shutil
import time
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pcpo.errors import RewardError
from pcpo.rewards import check_reward, load_reward
from pcpo.rewards.aesthetic import Aesthetic, load_head
from pcpo.rewards.base import evaluate
from pcpo.rewards.checker import PROMPTS, probe_pictures
from pcpo.rewards.clip import CLIPScore
from pcpo.rewards.hpsv2 import HPSv2, from_open_clip
from pcpo.rewards.pickscore import PickScore
from pcpo.rewards.siglip import SigLIPScore
from towers import random_open_clip

WIDTHS = (8, 6, 4, 1)


def towers(folder):
    """The tiny model, and its own joint forward pass on the probe pictures and prompts."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(
        list(PROMPTS), padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model, model(**tokens, pixel_values=CLIPScore(folder).preprocess(probe_pictures()))


def values(reward):
    return evaluate(reward, probe_pictures(), PROMPTS, [{}] * 6).values


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head laid out as the published one: linear layers with gaps in the numbers, where dropout was."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, (width, out) in zip((0, 2, 4), pairwise(WIDTHS), strict=True):
        tensors[f"layers.{number}.weight"] = torch.randn(out, width, generator=generator)
        tensors[f"layers.{number}.bias"] = torch.randn(out, generator=generator)
    path = tmp_path_factory.mktemp("head") / "model.safetensors"
    save_file({**tensors, "vision_model.embeddings.class_embedding": torch.zeros(3)}, path)
    return path


def test_pickscore_is_the_models_own_logit(clip_folder):
    _, joint = towers(clip_folder)
    torch.testing.assert_close(
        values(PickScore(clip_folder, batch_size=4)), joint.logits_per_image.diagonal(), atol=1e-4, rtol=0
    )


def test_siglip_is_the_models_own_logit_and_its_sigmoid(siglip_folder, tmp_path):
    folder = shutil.copytree(siglip_folder, tmp_path / "siglip")
    weights = load_file(folder / "model.safetensors")
    learned = {"logit_scale": torch.tensor([1.5]), "logit_bias": torch.tensor([-2.0])}
    save_file({**weights, **learned}, folder / "model.safetensors", metadata={"format": "pt"})
    _, joint = towers(folder)
    logit = joint.logits_per_image.diagonal()
    torch.testing.assert_close(values(SigLIPScore(folder)), logit, atol=1e-4, rtol=0)
    probability = values(load_reward("siglip_score", model=str(folder), output="probability"))
    torch.testing.assert_close(probability, torch.sigmoid(logit), atol=1e-5, rtol=0)
    assert probability.std() > 1e-3


def test_hpsv2_is_the_cosine_without_scale(clip_folder):
    model, joint = towers(clip_folder)
    expected = joint.logits_per_image.diagonal() / model.logit_scale.detach().exp()
    torch.testing.assert_close(values(HPSv2(clip_folder)), expected, atol=1e-5, rtol=0)


def test_aesthetic_is_the_head_on_the_unit_embedding(clip_folder, head):
    _, joint = towers(clip_folder)
    x = F.normalize(joint.image_embeds, dim=-1).double()
    tensors = load_file(head)
    for number in (0, 2, 4):
        x = F.linear(x, tensors[f"layers.{number}.weight"].double(), tensors[f"layers.{number}.bias"].double())
    for source in (head, head.parent):
        reward = Aesthetic(clip_folder, head=source, batch_size=4)
        torch.testing.assert_close(values(reward), x[:, 0].float(), atol=1e-5, rtol=0)
    assert check_reward(reward) == [] and x.std() > 1e-3


def test_a_head_of_one_layer(clip_folder, tmp_path):
    weight, bias = torch.randn(1, 8), torch.randn(1)
    save_file({"weight": weight, "bias": bias}, tmp_path / "linear.safetensors")
    reward = Aesthetic(clip_folder, head=str(tmp_path / "linear.safetensors"))
    expected = F.linear(reward.image_features(probe_pictures()), weight, bias)[:, 0]
    torch.testing.assert_close(values(reward), expected)


BAD_HEADS = {
    "does not chain": {
        "layers.0.weight": (6, 8),
        "layers.0.bias": (6,),
        "layers.1.weight": (1, 5),
        "layers.1.bias": (1,),
    },
    "many numbers": {"weight": (3, 8), "bias": (3,)},
    "no bias": {"weight": (1, 8)},
    "other bias": {"weight": (1, 8), "bias": (2,)},
    "nothing of it": {"mlp.weight": (1, 8)},
}


@pytest.mark.parametrize("shapes", BAD_HEADS.values(), ids=BAD_HEADS)
def test_heads_of_the_wrong_shape(tmp_path, shapes):
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "head.safetensors")
    with pytest.raises(RewardError, match=r"no chain of linear layers that ends in one number"):
        load_head(str(tmp_path / "head.safetensors"))


def test_heads_that_do_not_fit_or_are_not_there(clip_folder, tmp_path):
    save_file({"weight": torch.zeros(1, 9), "bias": torch.zeros(1)}, tmp_path / "wide.safetensors")
    with pytest.raises(RewardError, match=r"takes embeddings of 9, and .* gives 8"):
        Aesthetic(clip_folder, head=tmp_path / "wide.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(RewardError, match=r"cannot be loaded"):
        load_head(str(tmp_path / "broken.safetensors"))
    with pytest.raises(RewardError, match=r"no such file"):
        load_head(str(tmp_path / "none.safetensors"))
    with pytest.raises(RewardError, match=r"cannot be loaded"):
        load_head(str(tmp_path))
    with pytest.raises(RewardError, match=r"options do not fit .*'head'"):
        load_reward("aesthetic", model=str(clip_folder))


def test_the_wrong_class_is_named(clip_folder):
    with pytest.raises(RewardError, match=r"CLIPModel has no logit_bias"):
        SigLIPScore(clip_folder)
    with pytest.raises(RewardError, match=r"output 'score' -> use one of: logit, probability"):
        SigLIPScore(clip_folder, output="score")


def test_weights_of_the_wrong_shape(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = torch.zeros(8, 5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"cannot be loaded"):
        PickScore(folder)


def test_the_processor_of_another_folder(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "bare")
    for file in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(RewardError, match=r"cannot be loaded .* tokenizer and preprocessor_config.json"):
        PickScore(folder)
    assert torch.equal(values(PickScore(folder, processor=clip_folder)), values(PickScore(clip_folder)))


def test_a_missing_tokenizer_is_not_made_up(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "mute")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(RewardError, match=r"cannot be loaded"):
        CLIPScore(folder)


@pytest.mark.parametrize("name", ["clip_score", "pickscore", "hpsv2", "siglip_score", "aesthetic"])
def test_a_hub_id_offline_is_refused_fast(name, head):
    options = {"head": str(head)} if name == "aesthetic" else {}
    start = time.perf_counter()
    with pytest.raises(RewardError, match=r"the hub did not give the model"):
        load_reward(name, model="owner/no-such-model", **options)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_near(clip_folder, dtype):
    low = load_reward("clip_score", model=str(clip_folder), dtype=dtype)
    assert low.model.dtype == getattr(torch, dtype)
    difference = (values(low) - values(CLIPScore(clip_folder))).abs().max()
    assert 0 < difference < 0.05


def test_an_unknown_dtype(clip_folder):
    with pytest.raises(RewardError, match=r"dtype 'int8' -> use one of: float32, bfloat16, float16"):
        CLIPScore(clip_folder, dtype="int8")


def open_clip_block(x, weights, prefix, heads, causal):
    """One residual attention block as open_clip defines it, on x [B, L, d]."""
    width = x.shape[-1]
    y = F.layer_norm(x, (width,), weights[f"{prefix}.ln_1.weight"], weights[f"{prefix}.ln_1.bias"])
    qkv = F.linear(y, weights[f"{prefix}.attn.in_proj_weight"], weights[f"{prefix}.attn.in_proj_bias"])
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    x = x + F.linear(y, weights[f"{prefix}.attn.out_proj.weight"], weights[f"{prefix}.attn.out_proj.bias"])
    y = F.layer_norm(x, (width,), weights[f"{prefix}.ln_2.weight"], weights[f"{prefix}.ln_2.bias"])
    y = F.gelu(F.linear(y, weights[f"{prefix}.mlp.c_fc.weight"], weights[f"{prefix}.mlp.c_fc.bias"]))
    return x + F.linear(y, weights[f"{prefix}.mlp.c_proj.weight"], weights[f"{prefix}.mlp.c_proj.bias"])


def open_clip_features(weights, pixels, tokens, eos):
    """Picture and text features [B, embed] by open_clip's definition, written out."""
    x = F.conv2d(pixels, weights["visual.conv1.weight"], stride=16).flatten(2).transpose(1, 2)
    x = (
        torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
        + weights["visual.positional_embedding"]
    )
    x = F.layer_norm(x, (16,), weights["visual.ln_pre.weight"], weights["visual.ln_pre.bias"])
    for n in range(2):
        x = open_clip_block(x, weights, f"visual.transformer.resblocks.{n}", 2, causal=False)
    x = F.layer_norm(x[:, 0], (16,), weights["visual.ln_post.weight"], weights["visual.ln_post.bias"])
    y = weights["token_embedding.weight"][tokens] + weights["positional_embedding"]
    for n in range(2):
        y = open_clip_block(y, weights, f"transformer.resblocks.{n}", 2, causal=True)
    y = F.layer_norm(y, (16,), weights["ln_final.weight"], weights["ln_final.bias"])
    y = y[torch.arange(len(y)), (tokens == eos).int().argmax(dim=1)]
    return x @ weights["visual.proj"], y @ weights["text_projection"]


def test_open_clip_weights_converted_score_the_same(clip_folder, tmp_path):
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    settings = json.loads((clip_folder / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        settings[tower]["hidden_act"] = "gelu"  # as laion's ViT-H-14 has it
    model = CLIPModel(CLIPConfig(**settings))
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    weights = random_open_clip(len(tokenizer))
    model.load_state_dict(from_open_clip(weights))
    model.save_pretrained(tmp_path / "hps")
    reward = HPSv2(tmp_path / "hps", processor=clip_folder)

    tokens = tokenizer(list(PROMPTS), padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    pixels = reward.preprocess(probe_pictures())
    pictures, texts = open_clip_features(weights, pixels, tokens["input_ids"], tokenizer.eos_token_id)
    expected = F.cosine_similarity(pictures, texts)
    torch.testing.assert_close(values(reward), expected, atol=1e-5, rtol=0)
    assert expected.std() > 1e-2


@pytest.mark.parametrize("key", ["visual.trunk.norm.weight", "transformer.resblocks.0.ls_1.gamma"])
def test_open_clip_weights_of_another_model(key):
    with pytest.raises(RewardError, match=rf"key '{key}' is not of a ViT CLIP"):
        from_open_clip({key: torch.zeros(1)})
