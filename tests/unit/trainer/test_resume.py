"""A stopped run goes on as if it had never stopped: weights bit for bit, and one log."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from pcpo.errors import CheckpointError, RewardError
from pcpo.observe.events import read_events
from pcpo.trainer.checkpoint import load_newest, optimizer_tensors
from pcpo.trainer.state import TrainState
from training import figures, reddish, run, same, weights

SETTINGS = {
    "plain": ("sd", {}),
    "everything": (
        "sd3",
        {
            "train": {"updates": 2, "epochs": 2, "select": "random", "fraction": 0.5},
            "sampler": {"stochastic": "trained"},
            "advantage": {"name": "running", "buffer": 4, "min_count": 2},
            "optim": {"ema_decay": 0.9},
            "kl": {"form": "exact", "beta": 0.1},
        },
    ),
    "full": ("sd_v", {"model": {"tune": "full"}, "optim": {"ema_decay": 0.5}}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_and_two_iterations_are_four(trainer, name):
    family, changes = SETTINGS[name]

    def make(iterations, **how):
        train = {**changes.get("train", {}), "iterations": iterations}
        return trainer(family, **{**changes, "run": {"checkpoint_every": 1}, "train": train}, **how)

    straight = make(4, output="straight")
    whole = run(straight)
    run(make(2))
    resumed = make(4, resume=True)
    assert resumed.state.iteration == 2
    assert figures(run(resumed)) == figures(whole)
    assert same(weights(resumed), weights(straight))
    moments = [optimizer_tensors(it.state.optimizer) for it in (resumed, straight)]
    assert moments[0] and same(*moments)
    saved = [next(t.folder.glob("lora/*.safetensors"), t.folder / "unet") for t in (resumed, straight)]
    saved = [path if path.is_file() else path / "diffusion_pytorch_model.safetensors" for path in saved]
    assert same(*(load_file(path) for path in saved))


def test_what_stops_a_run_has_its_last_finished_iteration_saved_first(trainer, tmp_path):
    """It dies in iteration 4, after a checkpoint at 2: iteration 3 is saved, and the run goes on from there."""
    calls = []

    def mortal(images, prompts, metadata):
        calls.append(len(images))
        if len(calls) == 6:  # evaluations at 0 and 2, and four iterations
            raise OSError("the disk is gone")
        return reddish(images, prompts, metadata)

    mortal.__qualname__ = reddish.__qualname__
    changes = {"train": {"iterations": 5}, "run": {"checkpoint_every": 2}}
    with pytest.raises(RewardError, match="the disk is gone"):
        trainer(reward=mortal, **changes).train()
    assert [event.iteration for event in read_events(tmp_path / "run/events.jsonl").iterations] == [1, 2, 3]
    resumed, straight = trainer(resume=True, **changes), trainer(output="straight", **changes)
    assert resumed.state.iteration == 3
    assert figures(run(resumed))[:2] == figures(run(straight))[:2] and same(weights(resumed), weights(straight))


def test_a_run_that_died_before_its_first_checkpoint_starts_over(trainer):
    def broken(images, prompts, metadata):
        raise ValueError("no")

    broken.__qualname__ = reddish.__qualname__
    with pytest.raises(RewardError):
        trainer(reward=broken).train()
    resumed, straight = trainer(resume=True), trainer(output="straight")
    assert figures(run(resumed)) == figures(run(straight)) and same(weights(resumed), weights(straight))


def test_the_summary_of_a_resumed_run_starts_where_the_run_did(trainer):
    before = trainer().train()
    after = trainer(resume=True, train={"iterations": 3}).train()
    assert after.reward_before == before.reward_before and after.reward_after != before.reward_after
    assert after.iterations == 3


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(trainer):
    first = trainer()
    log = run(first)
    again = trainer(resume=True)
    assert figures(run(again)) == figures(log) and same(weights(again), weights(first))


def test_a_checkpoint_of_other_weights_is_refused(trainer):
    run(trainer())
    it = trainer(output="other", model={"lora": {"rank": 2}})
    stored = it.folder.parent / "run/checkpoints"
    snapshot, _ = load_newest(stored)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        it.state.restore(snapshot)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_what_the_settings_need_is_refused(trainer):
    run(trainer())
    it = trainer(output="other", advantage={"name": "running"})
    snapshot, _ = load_newest(it.folder.parent / "run/checkpoints")
    with pytest.raises(CheckpointError, match="running"):
        it.state.restore(snapshot)


def test_ema_is_its_recursion_and_the_weights_come_back(trainer):
    """s <- d s + (1 - d) w with d = min(decay, (1 + n) / (10 + n)), the warm-up of diffusers' EMA."""
    it = trainer(optim={"ema_decay": 0.3})
    state, expected = it.state, [p.detach().clone() for p in it.state.parameters]
    assert isinstance(state, TrainState)
    for n in range(1, 7):
        for parameter in state.parameters:
            parameter.grad = torch.randn_like(parameter)
        state.step()
        decay = min(0.3, n / (9 + n))
        expected = [decay * s + (1 - decay) * p.detach() for s, p in zip(expected, state.parameters, strict=True)]
    before = weights(it)
    with state.averaged():
        for parameter, average in zip(state.parameters, expected, strict=True):
            torch.testing.assert_close(parameter.detach(), average)
        assert not same(before, weights(it))
    assert same(before, weights(it))


def test_the_average_is_what_is_saved_and_evaluated(trainer):
    it = trainer(optim={"ema_decay": 0.5}, train={"iterations": 2})
    run(it)
    stored = load_file(it.folder / "lora/pytorch_lora_weights.safetensors")
    with it.state.averaged():
        average = weights(it)
    (name, value) = next((n, v) for n, v in average.items() if ".lora_B." in n and v.any())
    key = "unet." + name.replace(".default", "")
    assert torch.equal(stored[key], value) and not torch.equal(stored[key], weights(it)[name])
