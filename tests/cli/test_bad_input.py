"""Bad input, row by row: `validate` and `train` refuse it with one line and the same code, before a weight is read."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import time

import pytest
import torch
from safetensors.torch import save_file

import servers
from pcpo.cli import main as cli
from pcpo.models import loading

FILE = """
preset: pcpo_sd
name: bad
model: {{path: {model}}}
prompts: [red, "a blue boat"]
sampler: {{steps: 3}}
batch: {{prompts: 2, group_size: 2}}
run: {{device: cpu}}
"""
CLIP = "{{name: {n}, options: {{model: {0}}}}}"
# what is wrong -> settings, exit code, words of the line
ROWS = {
    "a pipeline family without an adapter": (["model.path={kandinsky}"], 4, "KandinskyPipeline has no adapter"),
    "a sampler of the other family": (["sampler.name=flow_sde"], 2, "flow_sde samples flow models"),
    "a hub id that is missing or gated, or no network": (["model.path=nobody/nothing"], 4, "nor reachable on the hub"),
    "a folder that is not there": (["model.path=./absent"], 4, "no such folder"),
    "weights in another format": (["model.path={bin}"], 4, "no safetensors"),
    "a LoRA of rank 0": (["model.lora.rank=0"], 2, "model.lora.rank"),
    "a LoRA target that matches nothing": (["model.lora.targets=[to_q, to_nothing]"], 2, "matches no module"),
    "a resolution that is not divisible": (["model.resolution=17"], 4, "resolution 17 is not a multiple of"),
    "a scheduler without a grid": (["model.path={no_grid}"], 4, "no noise schedule"),
    "a prediction type without a step": (["model.path={sample}"], 4, "prediction_type sample"),
    "a device that is not there": (["run.device=mps"], 2, "no mps device"),
    "a reward's head of another shape": (
        ["reward={name: aesthetic, options: {model: {clip}, head: {head}}}"],
        5,
        "chain",
    ),
    "a reward's model that is not there": (
        ["reward={name: clip_score, options: {model: ./absent}}"],
        5,
        "no such folder",
    ),
    "a reward's model without weights": (["reward={name: clip_score, options: {model: {empty}}}"], 5, ""),
    "an option that a reward does not have": (["reward={name: clip_score, options: {modle: x}}"], 5, "do not fit"),
    "a reward that is unknown": (["reward=colourfulness"], 5, "did you mean 'colorfulness'?"),
    "weights of rewards that are no numbers": (["reward=[{name: colorfulness, weight: [1, 2]}]"], 2, "weight"),
    "a reward server that is dead": (
        ["reward={name: http, options: {url: '{dead}', timeout: 1}}"],
        5,
        "cannot connect",
    ),
    "a reward server that is none": (["reward={name: http, options: {url: '{none}'}}"], 5, "instead of JSON"),
    "a reward server of another format": (
        ["reward={name: http, options: {url: '{lying}'}}"],
        5,
        "no reward server of this version",
    ),
    "a prompt without a quoted target": (["reward=ocr"], 3, "quote"),
    "a prompts file that is not there": (["prompts=absent.txt"], 3, "no such file"),
    "a batch that does not divide": (["train.updates=3"], 2, "does not divide"),
}


@pytest.fixture(scope="module")
def world(folders, tmp_path_factory):
    """Everything that the rows name in braces."""
    parent = tmp_path_factory.mktemp("bad")

    def copy(name, change=lambda folder: None):
        shutil.copytree(folders["sd"], parent / name)
        change(parent / name)
        return parent / name

    def rewrite(file, **values):
        return lambda folder: (folder / file).write_text(
            json.dumps({**json.loads((folder / file).read_text()), **values})
        )

    def to_bin(folder):
        next((folder / "unet").glob("*.safetensors")).rename(folder / "unet" / "model.bin")

    def without_grid(folder):
        rewrite("model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])(folder)
        (folder / "scheduler/scheduler_config.json").write_text("{}")

    save_file({"layers.0.weight": torch.zeros(3, 8), "layers.0.bias": torch.zeros(3)}, parent / "head.safetensors")
    (parent / "clip").mkdir()
    (parent / "clip/config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, parent / "clip/model.safetensors")
    (parent / "empty").mkdir()
    (parent / "empty/config.json").write_text("{}")
    page = servers.Reply(200, b"<html>", {"content-type": "text/html"})
    with contextlib.ExitStack() as stack:
        other = servers.Faulty(lambda path, body: b'{"format": "another"}')
        none, lying = stack.enter_context(servers.faulty(servers.Faulty(lambda path, body: page), other))
        yield {
            "model": folders["sd"],
            "kandinsky": copy("kandinsky", rewrite("model_index.json", _class_name="KandinskyPipeline")),
            "bin": copy("bin", to_bin),
            "no_grid": copy("no_grid", without_grid),
            "sample": copy("sample", rewrite("scheduler/scheduler_config.json", prediction_type="sample")),
            "head": parent / "head.safetensors",
            "clip": parent / "clip",
            "empty": parent / "empty",
            "dead": "http://127.0.0.1:9",
            "none": none,
            "lying": lying,
        }


@pytest.fixture
def pcpo(monkeypatch, capsys, tmp_path, world):
    """pcpo(verb, settings) -> exit code and stderr; fails if a weight of the pipeline is read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(FILE.format(**world))

    def call(verb, settings):
        given = list(settings)
        for name, value in world.items():
            given = [setting.replace(f"{{{name}}}", str(value)) for setting in given]
        monkeypatch.setattr("sys.argv", ["pcpo", verb, "bad.yaml", *(f"--set={setting}" for setting in given)])
        monkeypatch.setattr(loading, "load_pipeline", lambda *args: pytest.fail("a weight was read"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
        return ended.value.code or 0, capsys.readouterr().err

    return call


@pytest.mark.parametrize("verb", ["validate", "train"])
@pytest.mark.parametrize("row", ROWS)
def test_refused(pcpo, tmp_path, row, verb):
    settings, code, words = ROWS[row]
    began = time.process_time()
    got, err = pcpo(verb, settings)
    assert time.process_time() - began < 5
    assert (got, err.count("\n")) == (code, 1) and err.startswith("pcpo: ") and "Traceback" not in err, err
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_what_is_good_is_not_refused(pcpo):
    began = time.process_time()
    assert pcpo("validate", []) == (0, "")
    assert gc.isenabled()  # it was off while pcpo worked
    assert time.process_time() - began < 5
