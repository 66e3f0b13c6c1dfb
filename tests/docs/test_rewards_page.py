"""The page that compares the rewards: every reward and prompt set has its row, and its blocks are run."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pages import DOCS, rows
from pcpo.data.prompts import embedded_prompt_sets, load_prompts
from pcpo.rewards import REWARDS, load_reward
from pcpo.trainer.config import Config
from towers import random_image_reward, random_open_clip, save_model, tokenizer

PAGE = DOCS / "how-to" / "rewards.md"
TEXT = PAGE.read_text("utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_every_reward_has_a_row_with_its_extra():
    table = {cells[0].strip("`"): cells for cells in rows(PAGE, "# Choose a reward")}
    assert list(table) == list(REWARDS)
    for name, spec in REWARDS.items():
        assert table[name][-1].strip("`") == (spec.extra or "-"), name


def test_every_prompt_set_is_counted():
    table = {}
    for cells in rows(PAGE, "## Prompts for them"):
        table |= dict(zip(re.findall(r"`(\w+)`", cells[0]), map(int, cells[1].split(", ")), strict=True))
    assert table == {name: len(load_prompts(name)) for name in embedded_prompt_sets()}


@pytest.mark.parametrize("number", range(5))
def test_configurations_are_accepted(number):
    config = Config.model_validate(yaml.safe_load(blocks("yaml")[number]))
    assert all(part.name in REWARDS for part in [*config.reward, *config.evaluation.rewards])


def test_every_mix_is_explained():
    choices = Config.model_fields["reward_mix"].annotation.__args__
    assert tuple(cells[0].strip("`") for cells in rows(PAGE, "## Several rewards")) == choices


def test_the_conversions_run(clip_towers, tmp_path, monkeypatch):
    """As printed, but for the pickles: their content stands in for the call that reads them."""
    folder, weights, head = clip_towers
    monkeypatch.chdir(tmp_path)
    aesthetic, hps, image_reward = (
        re.sub(r"torch\.load\(.*?\)(?=\n|\[|, \"models)", "given", text) for text in blocks("python")
    )
    exec(compile(aesthetic, str(PAGE), "exec"), {"given": head})
    assert load_file("aesthetic-head.safetensors").keys() == head.keys()
    hps = hps.replace("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", str(folder))
    exec(compile(hps, str(PAGE), "exec"), {"given": {"state_dict": weights}})
    given = random_image_reward(len(tokenizer()))
    image_reward = image_reward.replace("google-bert/bert-base-uncased", str(folder))
    exec(compile(image_reward, str(PAGE), "exec"), {"given": given})
    reward = load_reward("image_reward", model="models/image-reward")
    assert reward(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"], [{}]).isfinite().all()
    for name, options in (
        ("hpsv2", {"model": "models/hpsv2.1"}),
        ("aesthetic", {"head": "aesthetic-head.safetensors"}),
    ):
        reward = load_reward(name, **{"model": str(folder), "processor": str(folder), **options})
        assert reward(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"], [{}]).isfinite().all()


@pytest.fixture
def clip_towers(tmp_path):
    """A tiny CLIP folder, weights of its shapes in open_clip's layout, and a head on its embedding."""
    folder = save_model(tmp_path / "clip")
    save_file({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    return folder, random_open_clip(len(tokenizer())), load_file(tmp_path / "head.safetensors")
