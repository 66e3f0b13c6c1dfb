"""DeepSpeed's ZeRO-2 over gloo: the run of one process, with half the optimiser in each of two."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ranks
import training
from pcpo.observe.events import read_events
from pcpo.trainer.config import Config
from pcpo.trainer.cost import iteration_cost

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: pcpo[deepspeed]"),
]


def settings(folders, output, iterations=3, **changes):
    base = {
        "batch": {"prompts": 2, "group_size": 4, "rollout": 1},
        "model": {"tune": "full"},
        "optim": {"learning_rate": 1e-5, "ema_decay": 0.9},
        "train": {"iterations": iterations, "updates": 2, "on_nonfinite": "skip"},
        "evaluation": {"every": 3, "credit_probe": 0},
        "run": {"checkpoint_every": 1, "keep_checkpoints": 9},
    }
    return training.settings("sd", folders["sd"], output, **training.merge(base, changes))


def run(world, target, config, *arguments):
    codes = ranks.finish(ranks.launch(world, target, config, *arguments))
    assert codes == [0] * world, ranks.said(config)
    return read_events(Path(config["run"]["output"]) / "events.jsonl")


def same_curves(a, b):
    for name in ("loss", "reward_mean", "grad_norm"):
        assert [getattr(e, name) for e in a.iterations] == pytest.approx(
            [getattr(e, name) for e in b.iterations], abs=1e-6
        )


ZERO, WHOLE = (2, ranks.train_zero), (1, ranks.train)


@pytest.mark.parametrize(("first", "then"), [(ZERO, WHOLE), (WHOLE, ZERO), (ZERO, ZERO)])
def test_zero_makes_the_run_of_one_process_and_checkpoints_go_on_in_either(folders, tmp_path, first, then):
    alone = run(*WHOLE, settings(folders, tmp_path / "one"), False, ranks.coarse)
    run(*first, settings(folders, tmp_path / "more", 2), False, ranks.coarse)
    together = run(*then, settings(folders, tmp_path / "more"), True, ranks.coarse)
    same_curves(alone, together)
    a, b = (load_file(tmp_path / f"{name}/checkpoints/000003/weight.safetensors") for name in ("one", "more"))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-6


def test_bf16_makes_the_run_of_one_process(folders, tmp_path):
    """Weights stay float32; the network computes in bf16, where a last bit of a weight may turn one of a prediction."""
    changes = {"run": {"precision": "bf16"}}
    alone = run(*WHOLE, settings(folders, tmp_path / "one", **changes), False, ranks.coarse)
    split = run(*ZERO, settings(folders, tmp_path / "more", **changes), False, ranks.coarse)
    assert alone.iterations[0].reward_mean == split.iterations[0].reward_mean
    for a, b in zip(alone.iterations, split.iterations, strict=True):
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=0.02)
        assert b.reward_mean == pytest.approx(a.reward_mean, abs=1e-3)


def test_a_parameter_without_gradient_does_not_decay(folders, tmp_path):
    for world in (1, 2):
        config = settings(folders, tmp_path / f"run{world}", iterations=1, optim={"weight_decay": 0.5})
        codes = ranks.finish(ranks.launch(world, ranks.train_with_a_spare, config, world > 1))
        assert codes == [0] * world, ranks.said(config)


def test_a_process_that_dies_in_a_backward_pass_is_named(folders, tmp_path):
    config = settings(folders, tmp_path / "run")
    assert ranks.finish(ranks.launch(2, ranks.train_zero_and_die, config)) == [12, 9]
    assert "DistributedError" in ranks.said(config)[0] and "backward pass" in ranks.said(config)[0]


def test_bytes_are_as_predicted(folders, tmp_path):
    """One reduction of all gradients a backward pass; what is left is the gradient norm, one number."""
    config = settings(folders, tmp_path / "run", iterations=1, train={"updates": 1}, optim={"ema_decay": None})
    assert ranks.finish(ranks.launch(2, ranks.train_zero_counted, config)) == [0, 0], ranks.said(config)
    for rank in range(2):
        measured = json.loads((tmp_path / f"run.cost{rank}.json").read_text())
        cost = iteration_cost(Config.model_validate(config), **measured["shape"], world=2, zero=True)
        assert (measured["reduced"], measured["gathered"]) == (cost.reduced + 4, cost.gathered)


def test_a_gradient_that_is_not_finite_changes_no_byte(folders, tmp_path):
    log = run(*ZERO, settings(folders, tmp_path / "run"), False, ranks.coarse, 3)
    assert len(log.iterations) == 3


def test_what_zero_cannot_do_is_refused(folders, tmp_path):
    config = settings(folders, tmp_path / "run", model={"tune": "lora"})
    assert ranks.finish(ranks.launch(2, ranks.train_zero, config)) == [2, 2]
    assert "model.tune" in ranks.said(config)[0] and not (tmp_path / "run").exists()
