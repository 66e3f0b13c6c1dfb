import json
import shutil

import pytest
import torch
from torch.nn import functional as F

from pcpo.errors import RewardError
from pcpo.rewards import build_rewards, check_reward, load_reward
from pcpo.rewards.base import evaluate
from pcpo.rewards.checker import PROMPTS, probe_pictures
from pcpo.rewards.clip import CLIPScore


@pytest.fixture(scope="module")
def scorer(clip_folder):
    return CLIPScore(clip_folder)


@pytest.fixture(params=["clip_folder", "siglip_folder"])
def any_folder(request):
    return request.getfixturevalue(request.param)


def test_equals_the_model_called_directly(any_folder):
    from transformers import AutoModel, AutoTokenizer

    images = probe_pictures()
    scorer = CLIPScore(any_folder, batch_size=4)
    model = AutoModel.from_pretrained(any_folder).eval()
    tokens = AutoTokenizer.from_pretrained(any_folder)(
        list(PROMPTS), padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        joint = model(**tokens, pixel_values=scorer.preprocess(images))
    expected = F.cosine_similarity(joint.image_embeds, joint.text_embeds)
    result = evaluate(scorer, images, PROMPTS, [{}] * 6)
    torch.testing.assert_close(result.values, expected, atol=1e-5, rtol=0)
    assert result.values.std() > 1e-3


def test_features_are_unit_vectors(scorer):
    pictures, texts = scorer.image_features(probe_pictures()), scorer.text_features(list(PROMPTS))
    assert pictures.shape == texts.shape == (6, 8)
    for features in (pictures, texts):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
        assert features.dtype == torch.float32 and not features.requires_grad
    assert texts.unique(dim=0).shape == (6, 8)


def test_each_prompt_is_encoded_once_and_alone(clip_folder, monkeypatch):
    scorer = CLIPScore(clip_folder)
    calls = []
    encode = scorer.model.get_text_features
    monkeypatch.setattr(
        scorer.model,
        "get_text_features",
        lambda **tokens: calls.append(len(tokens["input_ids"])) or encode(**tokens),
    )
    first = scorer.text_features(["a", "b", "a"])
    assert calls == [1, 1] and torch.equal(first[0], first[2])
    again = scorer.text_features(["c", "b"])
    assert calls == [1, 1, 1] and torch.equal(again[1], first[1])
    assert torch.equal(CLIPScore(clip_folder).text_features(["b"])[0], first[1])


def test_the_cache_is_bounded(scorer, monkeypatch):
    monkeypatch.setattr("pcpo.rewards.clip.MAX_CACHED_PROMPTS", 3)
    scorer._text_cache.clear()
    for prompt in ("a", "b", "c", "d"):
        scorer.text_features([prompt])
    assert list(scorer._text_cache) == ["b", "c", "d"]


def test_long_and_empty_prompts(scorer):
    features = scorer.text_features(["", "word " * 300, "\u00e9t\u00e9"])
    assert features.isfinite().all()


def test_passes_the_checker(scorer):
    assert check_reward(scorer) == []


def test_by_name_with_options(clip_folder):
    reward = build_rewards([("clip_score", 1.0, {"model": str(clip_folder), "batch_size": 2}), ("colorfulness", 0, {})])
    result = evaluate(reward, probe_pictures(), PROMPTS, [{}] * 6)
    assert list(result.info) == ["clip_score", "colorfulness"]
    assert torch.equal(result.values, result.info["clip_score"])


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_missing_places_are_typed(tmp_path, monkeypatch):
    with pytest.raises(RewardError, match=r"no such folder"):
        CLIPScore(tmp_path / "none")
    for name in ("./none", "a/b/c", ""):
        with pytest.raises(RewardError, match=r"no such folder"):
            CLIPScore(name)
    with pytest.raises(RewardError, match=r"cannot be loaded .* give a folder with config.json"):
        CLIPScore(tmp_path)
    with pytest.raises(RewardError, match=r"options do not fit .*'model'"):
        load_reward("clip_score")


def test_a_hub_that_does_not_answer_is_typed(monkeypatch):
    def unreachable(*args, **options):
        assert options["local_files_only"] is False
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    with pytest.raises(RewardError, match=r"OSError: We couldn't connect.*the hub did not give the model"):
        CLIPScore("owner/name")


def test_a_local_folder_never_asks_the_hub(clip_folder, monkeypatch):
    import socket

    def refuse(*args, **options):
        raise AssertionError("network used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert CLIPScore(clip_folder).text_features(["a"]).shape == (1, 8)


DAMAGE = {
    "preprocessor gone": lambda f: (f / "preprocessor_config.json").unlink(),
    "weights cut": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:500]),
    "weights gone": lambda f: (f / "model.safetensors").unlink(),
    "pickle instead": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "config not JSON": lambda f: (f / "config.json").write_text("{"),
    "config of another kind": lambda f: (f / "config.json").write_text('{"model_type": "nothing"}'),
    "tokenizer damaged": lambda f: (f / "tokenizer.json").write_text("{}"),
    "preprocessor not JSON": lambda f: (f / "preprocessor_config.json").write_text("["),
    "preprocessor list": lambda f: (f / "preprocessor_config.json").write_text("[]"),
    "preprocessor empty": lambda f: (f / "preprocessor_config.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_typed(clip_folder, tmp_path, damage):
    folder = copy(clip_folder, tmp_path)
    DAMAGE[damage](folder)
    with pytest.raises(RewardError, match=r"cannot be (loaded|used)") as caught:
        CLIPScore(folder)
    assert str(folder) in caught.value.where and "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy(clip_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"1 weights are missing, such as 'visual_projection.weight'"):
        CLIPScore(folder)


def test_a_model_of_one_tower_is_refused(clip_folder, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = copy(clip_folder, tmp_path)
    config = json.loads((clip_folder / "config.json").read_text())["text_config"]
    CLIPTextModel(CLIPTextConfig(**config)).save_pretrained(folder)
    with pytest.raises(RewardError, match=r"CLIPTextModel is no text-image dual encoder"):
        CLIPScore(folder)


def test_the_hub_is_asked_once_before_a_download_is_tried(monkeypatch):
    asked = []

    def unreachable(url, timeout):
        asked.append((url, timeout))
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(RewardError, match=r"nor reachable on the hub \(no route\)"):
        CLIPScore("owner/unreachable")
    assert len(asked) == 1 and asked[0][1] <= 10


def test_loading_shows_no_bar(clip_folder, capfd):
    from transformers.utils import logging

    logging.enable_progress_bar()
    CLIPScore(clip_folder)
    assert "Loading" not in "".join(capfd.readouterr())
