"""The number of processes changes how a run is executed, not what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import ranks
import training
from pcpo.observe.events import read_events


def settings(folders, output, family="sd", **changes):
    """Three iterations of two prompts; one picture a call, so that every call rounds alike."""
    base = {
        "batch": {"prompts": 2, "group_size": 4, "rollout": 1},
        "train": {"iterations": 3},
        "evaluation": {"every": 3},
    }
    return training.settings(family, folders[family], output, **training.merge(base, changes))


def run(world, target, config, *arguments):
    codes = ranks.finish(ranks.launch(world, target, config, *arguments))
    assert codes == [0] * world, ranks.said(config)
    return read_events(Path(config["run"]["output"]) / "events.jsonl")


def tuned(config, iteration):
    return load_file(Path(config["run"]["output"]) / f"checkpoints/{iteration:06d}/weight.safetensors")


def difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def curves(log):
    return [[getattr(event, name) for event in log.iterations] for name in ("loss", "reward_mean", "grad_norm")]


SEVERAL = {"train": {"updates": 2, "epochs": 2}, "kl": {"form": "exact", "beta": 0.1}}
WORLDS = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("world", WORLDS)
def test_several_processes_make_the_run_of_one_in_float64(folders, tmp_path, world):
    one, more = (settings(folders, tmp_path / name, **SEVERAL) for name in ("one", "more"))
    alone, together = (
        run(n, ranks.train_in_double, config, training.reddish) for n, config in ((1, one), (world, more))
    )
    for a, b in zip(curves(alone), curves(together), strict=True):
        assert a == pytest.approx(b, rel=1e-12)
    assert curves(alone)[1] == curves(together)[1]  # rewards are of pictures in 8 bits: the same ones, bit for bit
    assert [e.values for e in alone.evaluations] == [e.values for e in together.evaluations]
    assert difference(tuned(one, 3), tuned(more, 3)) < 1e-12


FULL = {"model": {"tune": "full"}, "optim": {"learning_rate": 1e-5, "ema_decay": 0.9}}
RUNS = [(2, {}), pytest.param(4, {}, marks=pytest.mark.slow), pytest.param(2, FULL, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("world", "changes"), RUNS)
def test_several_processes_make_the_run_of_one_in_float32(folders, tmp_path, world, changes):
    one, more = (settings(folders, tmp_path / name, **changes) for name in ("one", "more"))
    alone, together = (run(n, ranks.train, config, False, ranks.coarse) for n, config in ((1, one), (world, more)))
    for a, b in zip(curves(alone), curves(together), strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert [event.ratio_error for event in together.iterations] == [0, 0, 0]


@pytest.mark.parametrize("family", ["sd3", pytest.param("sd", marks=pytest.mark.slow)])
def test_split_weights_give_the_run_of_whole_ones(folders, tmp_path, family):
    """FSDP2 on the CPU. Two updates: the processes have unequal shares of a minibatch, and must make as many calls."""
    changes = {"train": {"updates": 2}, "kl": {"form": "exact", "beta": 0.1}, "run": {"checkpoint_every": 1}}
    whole, split = (settings(folders, tmp_path / name, family, **changes) for name in ("whole", "split"))
    expected, found = run(2, ranks.train, whole), run(2, ranks.train_split, split)
    for a, b in zip(curves(expected), curves(found), strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    if family == "sd3":  # a U-Net's convolutions round as their weights lie in memory
        assert curves(found) == curves(expected)
        assert difference(tuned(whole, 3), tuned(split, 3)) == 0
    assert (tmp_path / "split/lora").is_dir()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"tune": "full"}}, "model.tune"),
        ({"evaluation": {"credit_probe": 8}}, "evaluation.credit_probe"),
        ({"credit": {"schedule": "adaptive"}}, "credit.schedule"),
        ({"batch": {"prompts": 1, "group_size": 3, "rollout": None}}, "FSDP"),
    ],
)
@pytest.mark.slow
def test_what_fsdp_cannot_do_is_refused(folders, tmp_path, changes, named):
    config = settings(folders, tmp_path / "run", **changes)
    assert ranks.finish(ranks.launch(2, ranks.train_split, config)) == [2, 2]
    assert named in ranks.said(config)[0] and not (tmp_path / "run").exists()
