"""`pcpo compare`: the same prompts and noises for every model, and what it writes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from pcpo.data.prompts import Prompt
from pcpo.errors import ConfigError, ModelError, RunFolderError
from pcpo.evaluation.sampling import Placement, load_base, load_for_sampling, sample_set
from pcpo.evaluation.side_by_side import compare, labels, to_json, write_comparison
from pcpo.types import RewardResult
from training import reddish, run

PROMPTS = [Prompt("red", {"id": 1}), Prompt("a <b>blue</b> boat")]


def shy(images, prompts, metadata):
    """Abstains on the prompt without an id."""
    valid = torch.tensor(["id" in entry for entry in metadata])
    return RewardResult(torch.ones(len(prompts)), valid)


@pytest.fixture
def sources(trainer, folders):
    it = trainer(optim={"learning_rate": 1e-2})
    run(it)
    return [str(folders["sd"]), str(it.folder)]


def test_pictures_are_those_of_sampling_alone(sources):
    result = compare(sources, PROMPTS, count=2, steps=2, seed=5, rewards={"reddish": reddish, "shy": shy})
    assert list(result.pictures) == ["sd", "run"]
    for source, pictures in zip(sources, result.pictures.values(), strict=True):
        alone = sample_set(load_for_sampling(source), PROMPTS, count=2, steps=2, guidance_scale=5.0, seed=5)
        assert torch.equal(pictures, alone)
    values = to_json(result)["values"]
    assert values["run"]["reddish"] == pytest.approx(reddish(result.pictures["run"], [], []).tolist())
    assert values["run"]["shy"] == [1.0, 1.0, None, None]


def test_what_it_writes(sources, tmp_path):
    result = compare(sources, PROMPTS, steps=2, rewards={"reddish": reddish})
    html = write_comparison(result, tmp_path / "out")
    assert html == tmp_path / "out/compare.html"
    assert sorted(path.name for path in html.parent.iterdir()) == ["compare.html", "compare.json", "compare.png"]
    text = html.read_text("utf-8")
    assert text.count("data:image/") == 4 and "&lt;b&gt;blue" in text and "<b>blue" not in text
    assert json.loads((tmp_path / "out/compare.json").read_text("utf-8"))["prompts"] == [p.text for p in PROMPTS]
    with Image.open(tmp_path / "out/compare.png") as grid:
        assert grid.width > 2 * 192 and grid.height > 2 * 192
    with pytest.raises(RunFolderError, match="exists already"):
        write_comparison(result, tmp_path / "out")


def test_refusals(sources, folders, tmp_path):
    for given in (sources[:1], [sources[0], sources[0]]):
        with pytest.raises(ConfigError, match="two or more different models"):
            compare(given, PROMPTS)
    with pytest.raises(ModelError, match="no such folder"):
        compare([sources[0], "./absent"], PROMPTS)
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text("utf-8")
    assert "resolution: null" in text
    config.write_text(text.replace("resolution: null", "resolution: 32"), "utf-8")
    other = shutil.copytree(folders["sd"], tmp_path / "other")
    with pytest.raises(ModelError, match="make pictures of 16 x 16 and 32 x 32 -> choose one --resolution for all"):
        compare([str(other), sources[1]], PROMPTS, steps=1)
    result = compare([str(other), sources[1]], PROMPTS, steps=1, placement=Placement(resolution=24))
    assert {tuple(pictures.shape[1:]) for pictures in result.pictures.values()} == {(3, 24, 24)}


def test_the_base_of_a_run_is_sampled_as_the_run_is(trainer, folders):
    it = trainer(model={"resolution": 32}, run={"precision": "bf16"})
    run(it)
    base = str(folders["sd"])
    pictures = compare([base, str(it.folder)], PROMPTS, steps=2).pictures
    alone = sample_set(load_base(it.config), PROMPTS, count=1, steps=2, guidance_scale=5.0, seed=0)
    assert torch.equal(pictures["sd"], alone) and alone.shape[-1] == 32


def test_labels_tell_sources_apart():
    assert labels(["emoji-sd", "runs/a/", "runs/b@20"]) == ["emoji-sd", "a", "b@20"]
    assert labels(["x/a", "y/a"]) == ["x/a", "y/a"]
