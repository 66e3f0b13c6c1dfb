"""benchmarks/overhead.py compares like with like, and runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

FILE = Path(__file__).parents[2] / "benchmarks/overhead.py"
SMALL = ["batch.prompts=2", "batch.group_size=3", "sampler.steps=4", "model.lora.rank=2"]
SMALL += ["train.select=all", "train.fraction=1"]  # so that no call is left half full


@pytest.fixture(scope="module")
def overhead():
    spec = importlib.util.spec_from_file_location("overhead", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_both_sides_do_the_same_model_work(overhead, folders, tmp_path, family, monkeypatch):
    config = overhead.configure(str(folders[family]), str(tmp_path), SMALL)
    work = {name: calls_of(make(config), monkeypatch) for name, make in overhead.SIDES.items()}
    assert work["iteration"] == work["model_calls"]
    assert {kind for kind, _ in work["iteration"]} == {"sample", "train", "decode", "optimise"}


def calls_of(run, monkeypatch):
    """(kind, shapes of its inputs) of every call on the model and the optimiser, in order."""
    seen = []

    def shapes(*values):
        return [tuple(value.shape) for value in values if isinstance(value, torch.Tensor)]

    def called(module, args, kwargs):
        seen.append(("train" if torch.is_grad_enabled() else "sample", shapes(*args, *kwargs.values())))

    def decode(latents, **kwargs):
        seen.append(("decode", shapes(latents)))
        return original(latents, **kwargs)

    vae = getattr(run, "trainer", run).adapter.pipe.vae
    original = vae.decode
    monkeypatch.setattr(vae, "decode", decode)
    handles = [
        run.backbone.register_forward_pre_hook(called, with_kwargs=True),
        register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(("optimise", shapes(*held(optimizer))))),
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


def held(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.slow
def test_it_measures_and_writes(overhead, folders, tmp_path, capsys):
    target = tmp_path / "overhead.json"
    models = [str(folders["sd"]), str(folders["sd3"])]
    overhead.main(["--models", *models, "--repeats", "2", "--threads", "1", "--output", str(target), "--set", *SMALL])
    found = json.loads(target.read_text("utf-8"))
    assert list(found["models"]) == models and found["threads"] == 1 and found["environment"]["torch"]
    for model in found["models"].values():
        assert len(model["seconds"]["iteration"]["wall"]) == len(model["seconds"]["model_calls"]["wall"]) == 2
        assert model["wall"]["ratio"] > 0 and model["cpu"]["ratio"] > 0
        assert all(100 < mib < 10_000 for mib in model["peak_rss_mib"].values())
    assert "peak memory" in capsys.readouterr().out
