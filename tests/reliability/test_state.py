"""Every part of the state counts: a resume that leaves one out does not end as the unbroken run does."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pcpo.trainer import checkpoint
from pcpo.trainer.random_state import RandomState
from training import SMALL, figures, merge, reddish, run, same, weights

EVERYTHING = merge(
    SMALL,
    {
        "model": {"lora": {"rank": 2, "targets": ["attn2.to_q"]}},
        "batch": {"prompts": 2},
        "train": {"updates": 2},
        "advantage": {"name": "running", "buffer": 4, "min_count": 2},
        "optim": {"ema_decay": 0.9},
        "run": {"checkpoint_every": 1},
    },
)


def unsteady(images, prompts, metadata):
    """A reward that draws from every global random state."""
    noise = [random.random() + random.gauss(0, 1) + np.random.rand() + np.random.randn() for _ in prompts]
    return reddish(images, prompts, metadata) + torch.rand(len(prompts)) + torch.tensor(noise)


unsteady.__qualname__ = reddish.__qualname__


def outcome(it):
    """All that a run leaves: its log, and its state as a checkpoint would hold it."""
    log = run(it)
    tensors = {name: value.detach().clone() for name, value in it.state.tensors().items()}
    return figures(log)[:2], tensors, it.state.record()


def halved(it):
    """As after an out-of-memory error in the update."""
    it.learner.sizes.halvings["micro"] = 1
    it.state.mark()
    return it


def equal(a, b):
    return a[0] == b[0] and same(a[1], b[1]) and a[2] == b[2]


@pytest.mark.parametrize(
    "full", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.reliability])], ids=["kinds", "all"]
)
def test_every_key_is_needed(trainer, ram, measured, full):
    """Each key of a checkpoint in turn has the value that it has in a new run."""

    def make(iterations, output, **how):
        return trainer(
            output=ram / output, reward=unsteady, **merge(EVERYTHING, {"train": {"iterations": iterations}}), **how
        )

    straight = outcome(halved(make(3, "straight")))
    first = halved(make(2, "run"))
    run(first)
    assert equal(outcome(make(3, "run", resume=True)), straight)  # with all of them it is the same
    run(halved(make(2, "source")))

    new = make(3, "new")
    fresh = new.state.tensors()
    saved = checkpoint.load(ram / "source/checkpoints/000002")
    changes = {
        name: ("tensors", name, fresh.get(name, torch.zeros_like(value))) for name, value in saved.tensors.items()
    }
    record = new.state.record()
    changes |= {f"record {name}": ("record", name, record[name]) for name in saved.record}
    start = RandomState.capture()
    changes |= {"random torch": ("random", "tensors", start.tensors)}
    changes |= {f"random {n}": ("random", "record", {**saved.random.record, n: start.record[n]}) for n in start.record}
    assert {"record iteration", "record samples", "record ema_step", "record running", "random numpy"} <= set(changes)
    # a matrix of a LoRA that is zero in both would not be missed, nor can it be
    tried = [
        key
        for key, (part, name, value) in changes.items()
        if part != "tensors" or not torch.equal(value, saved.tensors[name])
    ]
    if not full:
        tried = list({kind(key): key for key in tried}.values())
    for count, key in enumerate(tried):
        it = make(3, f"run{count}")
        run_without(it, saved, *changes[key])
        assert not equal(outcome(it), straight), key
    measured("state_keys", keys=len(changes), tried=len(tried), missed_by_the_test=0)


def kind(key):
    """weight, exp_avg, ema, random torch, ..."""
    return key.rpartition(".")[2] if key.startswith("optimizer") else key.split(".")[0]


def run_without(it, saved, part, name, value):
    """Restore a checkpoint into a trainer, but for one key."""
    parts = {"tensors": dict(saved.tensors), "record": dict(saved.record), "random": saved.random}
    if part == "random":
        parts["random"] = RandomState(**{"tensors": saved.random.tensors, "record": saved.random.record, name: value})
    else:
        parts[part][name] = value
    it.state.restore(checkpoint.Snapshot(saved.iteration, **parts))
    it.state.mark()


def test_prompts_noises_and_steps_need_no_state(trainer, ram):
    """Asked for in any order, in any process, an iteration has the same prompts, noises and steps."""
    changes = merge(SMALL, {"train": {"select": "random", "fraction": 0.5}})
    one, other = (trainer(output=ram / name, **changes) for name in ("one", "other"))
    for iteration in (7, 0, 3, 7):
        requests = [it.learner._request(iteration) for it in (one, other)]
        assert requests[0].texts == requests[1].texts and requests[0].sample_ids == requests[1].sample_ids
        noises = [request.noise(0, (4, 8, 8), slice(None)) for request in requests]
        assert torch.equal(*noises)
        assert torch.equal(one.algorithm.trained(iteration), other.algorithm.trained(iteration))
        torch.rand(3), random.random()


def test_the_scale_of_fp16_losses_comes_back(trainer, ram):
    it = trainer(output=ram / "run", **SMALL)
    it.state._loss_scaling = True
    it.state.scaler = it.state._new_scaler()
    it.state.scaler.load_state_dict({**it.state.scaler.state_dict(), "scale": 128.0, "_growth_tracker": 7})
    saved = it.state.snapshot({})
    it.state.scaler = it.state._new_scaler()
    it.state.restore(saved)
    assert it.state.scaler.state_dict()["scale"] == 128.0 and it.state.scaler.state_dict()["_growth_tracker"] == 7


@pytest.mark.gpu
def test_random_states_of_an_accelerator_come_back(ram):
    device = torch.accelerator.current_accelerator()
    torch.rand(1, device=device)
    folder = checkpoint.save(ram, checkpoint.Snapshot(1, {}, {}, RandomState.capture()))
    expected = torch.rand(5, device=device)
    torch.rand(9, device=device)
    checkpoint.load(folder).random.restore()
    assert torch.equal(torch.rand(5, device=device), expected)


def test_weights_of_a_stopped_iteration_are_not_kept(trainer, ram):
    """An error between two updates: the state goes back to the border of the iterations."""
    changes = merge(EVERYTHING, {"train": {"iterations": 3, "updates": 2}, "run": {"checkpoint_every": 100}})
    straight = trainer(output=ram / "straight", **changes)
    run(straight)
    it = trainer(output=ram / "run", **changes)
    step, count = it.state.step, []

    def broken():
        count.append(1)
        step()
        if len(count) == 3:  # the first update of the second iteration
            raise ZeroDivisionError

    it.state.step = broken
    with pytest.raises(ZeroDivisionError):
        it.train()
    resumed = trainer(output=ram / "run", resume=True, **changes)
    assert resumed.state.iteration == 1
    run(resumed)
    assert same(weights(resumed), weights(straight))
