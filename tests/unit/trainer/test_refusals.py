"""Bad input is refused with one typed line, before a weight is read where that is possible, and nothing is touched."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pcpo.errors import ConfigError, ModelError, PCPOError, PromptError, RewardError, RunFolderError
from pcpo.models import loading
from pcpo.observe.events import read_events
from pcpo.trainer.loop import PCPOTrainer
from pcpo.types import RewardResult
from training import reddish, settings


@pytest.fixture
def sealed(monkeypatch):
    """Weights cannot be read."""

    def fail(*args, **kwargs):
        pytest.fail("a weight was read before the input was refused")

    monkeypatch.setattr(loading, "load_pipeline", fail)


@pytest.fixture
def refused(folders, tmp_path):
    """refused(error, *words, parts=[...], section={...}): the trainer cannot be made, and no file came or went."""

    def check(error, *words, family="sd", folder=None, parts=({"name": "colorfulness"},), resume=False, **changes):
        config = settings(family, folder or folders[family], tmp_path / "run", reward=list(parts), **changes)
        before = files(tmp_path)
        with pytest.raises(error) as caught:
            PCPOTrainer(config=config, resume=resume, quiet=True)
        message = str(caught.value)
        assert all(word in message for word in words) and "\n" not in message and len(message) < 700
        assert files(tmp_path) == before

    return check


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy(folders, tmp_path, family="sd"):
    return shutil.copytree(folders[family], tmp_path / "model")


# The model


def test_no_model_folder(sealed, refused, tmp_path):
    refused(ModelError, "no such folder", folder=tmp_path / "absent")
    refused(ModelError, "did you mean emoji-sd3?", model={"path": "emoji-sd33"})
    (tmp_path / "file").write_text("")
    refused(ModelError, "is a file", folder=tmp_path / "file")


INDEX = "model_index.json"


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no model_index.json"),
        ("{", "is not valid JSON"),
        ("\xff", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "names no pipeline class"),
        ('{"_class_name": 3}', "names no pipeline class"),
        ('{"_class_name": "KandinskyPipeline"}', "has no adapter"),
        ('{"_class_name": "UNet2DConditionModel"}', "has no adapter"),
    ],
)
def test_a_broken_index(sealed, refused, tmp_path, text, words):
    folder = tmp_path / "model"
    folder.mkdir()
    if text is not None:
        (folder / INDEX).write_text(text, "latin-1")
    refused(ModelError, words, "model", folder=folder)


def test_a_component_is_missing(sealed, refused, folders, tmp_path):
    folder = copy(folders, tmp_path)
    shutil.rmtree(folder / "vae")
    refused(ModelError, "vae", folder=folder)


def test_weights_in_another_format(sealed, refused, folders, tmp_path):
    folder = copy(folders, tmp_path)
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")
    refused(ModelError, "no safetensors", "unet", folder=folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"", lambda data: b"\xff" * 64])
def test_damaged_weights(refused, folders, tmp_path, part, damage):
    folder = copy(folders, tmp_path)
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(damage(weights.read_bytes()))
    refused(ModelError, "cannot", folder=folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_tensor_is_missing(refused, folders, tmp_path, part):
    folder = copy(folders, tmp_path)
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[len(tensors) // 2]
    save_file({key: value for key, value in tensors.items() if key != name}, path, {"format": "pt"})
    refused(ModelError, f"{part} lacks 1 of its weights: {name}", folder=folder)


def test_a_component_config_that_is_broken(refused, folders, tmp_path):
    folder = copy(folders, tmp_path)
    (folder / "unet/config.json").write_text("{")
    refused(ModelError, folder=folder)
    (folder / "unet/config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", "sample_size": "x"}))
    refused(ModelError, folder=folder)


def test_a_folder_that_lacks_weights_for_its_shape(refused, folders, tmp_path):
    folder = copy(folders, tmp_path)
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "block_out_channels": [24, 48]}))
    refused(ModelError, folder=folder)


def test_a_hub_name_without_a_hub(sealed, refused):
    refused(ModelError, "reachable", model={"path": "nobody/nothing-at-all"})


def test_a_prediction_type_that_has_no_step(refused, folders, tmp_path):
    folder = copy(folders, tmp_path)
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))
    refused(ModelError, "prediction_type sample", folder=folder)


def test_a_scheduler_without_a_grid(refused, folders, tmp_path):
    folder = copy(folders, tmp_path)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}))
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    refused(ModelError, "FlowMatchEulerDiscreteScheduler has no noise schedule", folder=folder)


def test_settings_that_the_model_refuses(refused):
    refused(ModelError, "resolution 17 is not a multiple of 2", model={"resolution": 17})
    refused(ModelError, "the model knows 16", "use 32 at most", family="sd3", model={"resolution": 48})
    refused(ConfigError, "model.lora.targets", "to_nothing", model={"lora": {"targets": ["to_q", "to_nothing"]}})
    refused(ConfigError, "no T5", model={"max_sequence_length": 8})


# Sampler, steps, device


def test_a_sampler_of_the_other_family(sealed, refused):
    flow = {"name": "cps", "eta": None}
    refused(ConfigError, "cps samples flow models", "use ddim", sampler=flow)
    refused(ConfigError, "ddim samples diffusion models", "flow_sde", family="sd3", sampler={"name": "ddim"})


def test_no_step_would_be_trained(sealed, refused):
    refused(ConfigError, "nothing to train", train={"select": "first", "fraction": 0.2})


def test_no_step_draws_noise(refused):
    refused(ConfigError, "nothing would be trained", family="sd3", sampler={"name": "cps", "steps": 1})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has the device that must be missing")
def test_a_device_that_is_not_there(sealed, refused):
    refused(ConfigError, "no cuda device", run={"device": "cuda"})


def test_batches_that_do_not_divide(sealed, refused):
    refused(ConfigError, "group of one", batch={"group_size": 1})
    refused(ConfigError, "train.updates 4 does not divide the 6 pictures", train={"updates": 4})
    refused(ConfigError, "batch.rollout 4 does not divide the 6 pictures", batch={"rollout": 4})


# Prompts


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no such file"),
        (b"", "holds no prompt"),
        (b"# only a comment\n\n", "holds no prompt"),
        (b"fine\nna\xefve\n", ":2: is not UTF-8"),
        (b"fine\n" + b"x" * 2001, ":2: prompt of 2,001 characters"),
        (b"a\0b", "control character U+0000"),
    ],
)
def test_prompt_files(sealed, refused, tmp_path, content, words):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    refused(PromptError, "prompts.txt", words, prompts=str(path))
    refused(PromptError, "prompts.txt", words, evaluation={"prompts": str(path)})


def test_prompt_sets_and_lists(sealed, refused):
    refused(PromptError, "unknown prompt set", prompts="common5O")
    refused(PromptError, "no prompt", prompts=[])
    refused(PromptError, "empty", prompts=["a", " "])


# Rewards


def test_rewards_that_cannot_be_had(sealed, refused, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def score(images, prompts, metadata):\n    return [0.0] * len(prompts)\n\nvalue = 3\n")
    for name, words in [
        ("colourfulness", "did you mean 'colorfulness'?"),
        (f"{own}:scores", "did you mean 'score'?"),
        (f"{own}:value", "not callable"),
        (f"{own}", "names a file only"),
        (f"{tmp_path}/absent.py:f", "no such file"),
        ("no_such_module:f", "no module 'no_such_module'"),
    ]:
        refused(RewardError, words, parts=[{"name": name}])
    own.write_text("raise RuntimeError('at import')")
    refused(RewardError, "RuntimeError: at import", parts=[{"name": f"{own}:f"}])
    refused(RewardError, "options do not fit", parts=[{"name": "clip_score", "options": {"modle": "x"}}])
    refused(RewardError, "takes no options", parts=[{"name": "colorfulness", "options": {"x": 1}}])


BAD_ANSWERS = {
    "shape": (lambda n: torch.zeros(n, 1), "shape (2, 1)"),
    "type": (lambda n: "high", "a str"),
    "nan": (lambda n: [float("nan")] * n, "returned nan at picture 0"),
    "raising": (lambda n: 1 / 0, "raised ZeroDivisionError"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_broken_reward_is_named_at_the_first_evaluation(trainer, name):
    answer, words = BAD_ANSWERS[name]

    def my_reward(images, prompts, metadata):
        return answer(len(prompts))

    it = trainer(reward=my_reward)
    with pytest.raises(RewardError) as caught:
        it.train()
    message = str(caught.value)
    assert "my_reward" in message and words in message and "\n" not in message
    assert {path.name for path in it.folder.rglob("*") if path.is_file()} == {"config.yaml", "events.jsonl"}


@pytest.mark.parametrize("name", ["nan", "raising", "shape"])
def test_a_reward_that_breaks_while_training_leaves_whole_files(trainer, name):
    answer, _ = BAD_ANSWERS[name]
    calls = []

    def my_reward(images, prompts, metadata):
        calls.append(len(images))
        return answer(len(prompts)) if len(calls) == 3 else reddish(images, prompts, metadata)

    it = trainer(reward=my_reward, train={"iterations": 4}, run={"checkpoint_every": 1}, evaluation={"every": 4})
    with pytest.raises(RewardError, match="my_reward"):
        it.train()
    log = read_events(it.folder / "events.jsonl")
    assert [event.iteration for event in log.iterations] == [1] and log.end is None
    names = sorted(path.name for path in it.folder.iterdir())
    assert names == ["checkpoints", "config.yaml", "events.jsonl", "images"]
    assert [path.name for path in (it.folder / "checkpoints").iterdir()] == ["000001"]
    assert not list(it.folder.rglob("*.tmp"))


def test_a_reward_that_always_abstains_is_an_error(trainer):
    def silent(images, prompts, metadata):
        return RewardResult(torch.zeros(len(images)), torch.zeros(len(images), dtype=torch.bool))

    with pytest.raises(RewardError, match=r"silent: abstained on every picture .* -> "):
        trainer(reward=silent).train()


# The run folder


def test_folders_of_others(sealed, refused, tmp_path):
    refused(RunFolderError, "holds no run to resume", resume=True)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    refused(RunFolderError, "not empty and not a run")
    (folder / "config.yaml").write_text("name: other\n")
    refused(RunFolderError, "already holds a run")
    refused(RunFolderError, "other settings", resume=True)
    (folder / "config.yaml").write_text("nme: other\n")
    refused(ConfigError, "did you mean name?", resume=True)


# Arguments of the library


def test_arguments_that_are_wrong(sealed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, words in [
        ({"config": "pcpo_sdd"}, "did you mean pcpo_sd?"),
        ({"config": {"nam": "x"}}, "did you mean name?"),
        ({"config": {"model": "sd"}}, "model: "),
        ({"prompts": []}, "no prompt"),
        ({"prompts": ["a", 3]}, "prompts"),
        ({"model": "absent"}, "no such folder"),
    ]:
        with pytest.raises(PCPOError) as caught:
            PCPOTrainer(quiet=True, **{"reward": reddish, **arguments})
        assert words in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_one_adapter_cannot_be_tuned_twice(folders, tmp_path):
    adapter = loading.load_adapter(str(folders["sd"]))
    config = settings("sd", folders["sd"], tmp_path / "run")
    PCPOTrainer(adapter, reddish, config, quiet=True)
    with pytest.raises(ConfigError, match="has a LoRA already"):
        PCPOTrainer(adapter, reddish, config, quiet=True)
