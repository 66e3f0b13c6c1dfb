"""Feature sets: the networks called as their own code calls them, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from pcpo.errors import ModelError
from pcpo.evaluation.features import Features, load_features


def pictures(count=5, side=32):
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8)


SETTINGS = {
    "do_resize": True,
    "size": {"height": 28, "width": 28},
    "resample": 3,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Kind -> folder of a vision backbone of random weights."""
    from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel

    torch.manual_seed(0)
    dino = Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14)
    models = {
        "dinov2": Dinov2Model(dino),
        "resnet": ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    }
    parent = tmp_path_factory.mktemp("backbones")
    for name, model in models.items():
        model.save_pretrained(parent / name)
        (parent / name / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return {name: parent / name for name in models}


def test_emoji_clip_is_the_scorer_itself():
    from pcpo.rewards.clip import EmojiCLIP

    features, scorer = load_features("emoji_clip"), EmojiCLIP()
    images = pictures(side=64)
    plain, full = features(images), features(images, stages=True)
    torch.testing.assert_close(plain.pooled, scorer.image_features(images))
    torch.testing.assert_close(full.pooled, plain.pooled)
    assert plain.stages == () and [tuple(s.shape) for s in full.stages] == [(5, 64, 128)] * 4
    torch.testing.assert_close(full.pooled.norm(dim=1), torch.ones(5))
    cosines = features.similarity(plain, ["red apple", "sun"])
    torch.testing.assert_close(cosines[:, 1], scorer(images, ["sun"] * 5, [{}] * 5))
    assert features.unit and features.logit_scale == pytest.approx(float(scorer.model.logit_scale.exp()))


@pytest.mark.parametrize(
    "kind, dimensions, stages", [("dinov2", 16, [(4, 16)] * 3), ("resnet", 16, [(49, 8), (16, 16)])]
)
def test_backbones_equal_the_model_called_directly(backbones, kind, dimensions, stages):
    from transformers import AutoModel

    features = load_features(str(backbones[kind]))
    images = pictures()
    out = features(images, stages=True)
    model = AutoModel.from_pretrained(backbones[kind]).eval()
    pixels = features.preprocess(images)
    with torch.no_grad():
        direct = model(pixel_values=pixels, output_hidden_states=True)
    torch.testing.assert_close(out.pooled, direct.pooler_output.flatten(1))
    assert out.pooled.shape == (5, dimensions) and features.name == str(backbones[kind])
    assert [tuple(s.shape[1:]) for s in out.stages] == stages
    last = direct.hidden_states[-1]
    # the class token of the transformer is no place in the picture
    expected = last[:, 1:] if kind == "dinov2" else last.flatten(2).transpose(1, 2)
    torch.testing.assert_close(out.stages[-1], expected)
    assert not out.pooled.requires_grad and features(images).stages == ()


def test_a_function_of_your_own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "import torch\n"
        "def means(images):\n    return images.double().mean((2, 3))\n"
        "def scalar(images):\n    return images.float().mean((1, 2, 3))\n"
        "def nan(images):\n    return torch.full((len(images), 2), torch.nan)\n"
    )
    features = load_features(f"{path}:means")
    assert features.name == "own.py:means"
    torch.testing.assert_close(features(pictures()).pooled, pictures().float().mean((2, 3)))
    for name in ("scalar", "nan"):
        with pytest.raises(ModelError, match="one finite vector per picture"):
            load_features(f"{path}:{name}")(pictures())
    with pytest.raises(ModelError, match=r"features .*own.py:absent: .* has no 'absent'"):
        load_features(f"{path}:absent")


def test_what_is_refused(backbones, tmp_path):
    with pytest.raises(ModelError, match=r"features ./none: no such folder"):
        load_features("./none")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_features(str(tmp_path))
    weights = backbones["resnet"] / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:200])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_features(str(backbones["resnet"]))
    weights.write_bytes(kept)


def test_a_text_model_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(ModelError, match="BertModel takes no pictures"):
        load_features(str(tmp_path))


def test_features_may_be_returned_with_stages(tmp_path):
    from pcpo.evaluation.features import OwnFeatures

    def both(images):
        return Features(images.float().mean((2, 3)), (images.float().flatten(2).transpose(1, 2),))

    out = OwnFeatures("both", both)(pictures())
    assert out.pooled.shape == (5, 3) and out.stages[0].shape == (5, 1024, 3)


def test_efficientnet_lite0(tmp_path):
    family = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    from safetensors.torch import save_file

    from pcpo.evaluation.efficientnet import PREPROCESS

    torch.manual_seed(0)
    network = family.from_name("efficientnet-lite0").eval()
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    features = load_features(str(path))
    out = features(pictures(2), stages=True)
    with torch.no_grad():
        expected = network.extract_features(PREPROCESS(pictures(2))).mean((2, 3))
    torch.testing.assert_close(out.pooled, expected)
    assert [s.shape[1] for s in out.stages] == [112**2, 56**2, 28**2, 14**2, 7**2]
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="is no efficientnet-lite0"):
        load_features(str(path))
    with pytest.raises(ModelError, match="no such file"):
        load_features("absent.safetensors")
