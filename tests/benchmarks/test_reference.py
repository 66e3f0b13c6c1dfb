"""benchmarks/reference.py compares two loops that learn the same thing."""

from __future__ import annotations

import json

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import reference
from loops import LOOPS
from overhead import Iteration

SMALL = ["model.lora.rank=2", "optim.max_grad_norm=1e9"]


def gradients(run):
    """The gradient [n] that the first optimiser step would take; run it to there."""
    seen = []

    def keep(optimizer, *_):
        held = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([p.grad.flatten() for p in held]).clone())

    handle = register_optimizer_step_pre_hook(keep)
    run()
    handle.remove()
    return seen


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_both_learn_the_same(folders, tmp_path, family, monkeypatch):
    config = reference.configure(str(folders[family]), str(tmp_path), (2, 3, 4), [*SMALL, "train.updates=1"])
    library = Iteration(config)
    loop = LOOPS[reference.kind(str(folders[family]))](config)
    request = library.trainer.learner._request(0)
    monkeypatch.setattr(loop, "prompts", lambda: [prompt.text for prompt in request.prompts])
    monkeypatch.setattr(loop, "noise", lambda step, texts: request.noise(step, loop.shape, slice(0, len(texts))))
    (expected,), (found,) = gradients(library), gradients(loop)
    assert expected.norm() > 0
    # the loop subtracts two log-probabilities of about 1, the library their difference: float32 leaves 1e-4 of it
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_it_measures_and_writes(folders, tmp_path, capsys):
    target = tmp_path / "reference.json"
    models = [str(folders["sd"])]
    arguments = ["--models", *models, "--sizes", "small", "--repeats", "2", "--output", str(target)]
    reference.main([*arguments, "--set", "sampler.steps=2", *SMALL])
    found = json.loads(target.read_text("utf-8"))["models"][models[0]]["small"]
    assert found["cpu"]["min"] <= found["cpu"]["ratio"] * 1.0001 or found["cpu"]["max"] >= found["cpu"]["ratio"]
    assert found["seconds"]["library"]["wall"]["median"] > 0
    assert "by processor time" in capsys.readouterr().out
