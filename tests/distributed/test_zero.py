"""DeepSpeed's ZeRO-2 over gloo: the run of one process, with half the optimiser in each of two."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ranks
import training
from pcpo.observe.events import read_events

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


def test_a_gradient_that_is_not_finite_changes_no_byte(folders, tmp_path):
    log = run(*ZERO, settings(folders, tmp_path / "run"), False, ranks.coarse, 3)
    assert len(log.iterations) == 3


def test_what_zero_cannot_do_is_refused(folders, tmp_path):
    config = settings(folders, tmp_path / "run", model={"tune": "lora"})
    assert ranks.finish(ranks.launch(2, ranks.train_zero, config)) == [2, 2]
    assert "model.tune" in ranks.said(config)[0] and not (tmp_path / "run").exists()
