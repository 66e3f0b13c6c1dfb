"""NaN and infinities put into every place of an update: nothing changes, the message names the place, and what then."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from pcpo.errors import NumericError, RewardError
from pcpo.observe.events import plain
from pcpo.trainer.checkpoint import list_checkpoints, load
from pcpo.trainer.guard import IN_A_ROW, Guard, NonFinite
from training import SILENT, constant, reddish, run, same, weights

VALUES = [float("nan"), float("inf"), float("-inf")]
CHANGES = {
    "train": {"iterations": 9, "updates": 2, "on_nonfinite": "stop"},
    "optim": {"learning_rate": 1e-3, "ema_decay": 0.9},
    "evaluation": {"every": 100},
}


@contextlib.contextmanager
def patched(thing, name, value):
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)


@contextlib.contextmanager
def poisoned_prediction(it, bad, call):
    """The network's output of its call number `call` from now on, from 0."""
    count = -1

    def hook(module, inputs, output):
        nonlocal count
        count += 1
        if count == call:
            output[0].data[-1, 0] = bad

    handle = it.adapter.unwrapped.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def poisoned_ema(it, bad):
    shadow = it.state.ema.shadow_params[0].view(-1)
    before = shadow[0].item()
    shadow[0] = bad
    try:
        yield
    finally:
        shadow[0] = before


@contextlib.contextmanager
def poisoned_gradient(it, bad):
    handle = it.state.parameters[-1].register_hook(lambda gradient: gradient + bad)
    try:
        yield
    finally:
        handle.remove()


def poison(it, site, bad):
    """A context in which `bad` comes up at `site`; the second picture's, where pictures have values of their own."""
    learner = it.learner

    def reward(images, prompts, metadata):
        values = reddish(images, prompts, metadata)
        values[1] = bad
        return values

    def advantages(result, groups, prompts):
        values, *rest = it.advantages(result, groups, prompts)
        values[0, 1] = bad
        return values, *rest

    def objective(terms):
        out = plain(terms)
        out.per_step = out.per_step + bad
        return out

    plain = learner.objective
    return {
        "reward": lambda: patched(learner, "reward", reward),
        "advantage": lambda: patched(learner, "advantages", advantages),
        "log-prob": lambda: poisoned_prediction(it, bad, 2),
        "log-ratio": lambda: poisoned_prediction(it, bad, 5),
        "loss": lambda: patched(learner, "objective", objective),
        "gradient": lambda: poisoned_gradient(it, bad),
        "EMA": lambda: poisoned_ema(it, bad),
    }[site]()


SITES = ["reward", "advantage", "log-prob", "log-ratio", "loss", "gradient", "EMA"]
# What the message must hold besides site and iteration.
NAMES = {
    "reward": ["picture 1", "prompts p"],
    "advantage": ["prompts p"],
    "log-prob": ["denoising steps 2", "prompts p"],
    "log-ratio": ["denoising steps 3", "prompts p", "minibatch 1 of 2"],
    "loss": ["denoising steps 0, 1, 2, 3", "prompts p", "minibatch 1 of 2"],
    "gradient": ["lora", "minibatch 1 of 2"],
    "EMA": ["lora", "minibatch 1 of 2"],
}


def image(it):
    """Every byte of weights, moments and EMA."""
    return {name: value.detach().cpu().numpy().tobytes() for name, value in it.state.tensors().items()}


@pytest.fixture
def started(trainer):
    """Makes a trainer that has done one clean iteration, so that there are moments to be changed."""

    def make(family="sd", **changes):
        it = trainer(family, **{**CHANGES, **changes})
        it.learner.run(SILENT)
        return it

    return make


@pytest.mark.reliability
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_nothing_is_updated_with_a_value_that_is_not_finite(started, measured, family):
    """Every site with every value, one after another on one trainer: a refusal leaves it as good as new."""
    it = started(family)
    clean = image(it)
    for site in SITES:
        for bad in VALUES:
            with poison(it, site, bad):
                before = image(it)
                with pytest.raises((NonFinite, RewardError)) as caught:
                    it.learner.run(SILENT)
                assert image(it) == before, (site, bad)
            message = str(caught.value)
            for part in [site, "iteration 2", *NAMES[site]]:
                assert part in message, (site, bad, message)
            assert "\n" not in message and it.state.iteration == 1
            assert all(p.grad is None for p in it.state.parameters)
    assert image(it) == clean
    measured(f"not_finite_{family}", places=len(SITES), values=len(VALUES), bytes_changed=0)
    it.learner.run(SILENT)
    assert image(it) != clean


@pytest.mark.parametrize("site", SITES)
def test_a_skipped_update_is_counted_and_the_run_goes_on(started, site):
    it = started(train={**CHANGES["train"], "on_nonfinite": "skip"})
    events = []
    log = SimpleNamespace(write=lambda kind, **fields: events.append((kind, fields)) or plain(fields))
    both = site in ("reward", "advantage", "log-prob", "loss", "gradient", "EMA")
    before = image(it)
    with poison(it, site, float("nan")):
        during = image(it)
        it.learner.run(log)
        assert (image(it) == during) == both
    event = dict(events)["iteration"]
    assert event["skipped"] == (2 if both else 1) and event["iteration"] == 2
    warned = [fields["message"] for kind, fields in events if kind == "warning"]
    assert len(warned) == (2 if site in ("loss", "gradient", "EMA") else 1) and all(site in w for w in warned)
    it.learner.run(log)
    assert image(it) != before and it.learner.guard.in_a_row == 0
    assert events[-1][1]["skipped"] == 0


def test_three_in_a_row_stop_after_a_checkpoint(trainer, capsys):
    calls = 0

    def failing(images, prompts, metadata):
        nonlocal calls
        calls += 1
        values = reddish(images, prompts, metadata)
        return values * float("nan") if 3 < calls < 7 else values  # the first evaluation, and two iterations

    it = trainer(reward=failing, **{**CHANGES, "train": {"iterations": 9, "on_nonfinite": "skip"}})
    with pytest.raises(NumericError, match="3 updates in a row were left out; the last for returned nan") as caught:
        it.train()
    assert "iteration 5, prompts p" in str(caught.value)
    (saved,) = list_checkpoints(it.folder / "checkpoints")
    assert saved.name == "000004"
    held = load(saved).tensors
    assert all(torch.equal(held[f"weight.{name}"], value) for name, value in weights(it).items())
    assert capsys.readouterr().out.count("update left out") == IN_A_ROW - 1
    again = trainer(resume=True, reward=failing, **{**CHANGES, "train": {"iterations": 9, "on_nonfinite": "skip"}})
    log = run(again)
    assert [e.skipped for e in log.iterations] == [0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert not same(weights(again), weights(it))


def test_an_update_in_between_starts_the_count_anew():
    guard, said = Guard("skip"), []
    for _ in range(4):
        for _ in range(IN_A_ROW - 1):
            guard.leave_out(NonFinite("x"), said.append)
        guard.updated()
    assert len(said) == 4 * (IN_A_ROW - 1)


def test_a_checkpoint_never_holds_a_value_that_is_not_finite(trainer):
    """The average is broken in memory: the run stops, and the checkpoint before stays the newest."""
    it = trainer(**{**CHANGES, "run": {"checkpoint_every": 1}})

    def breaking(images, prompts, metadata):
        if it.state.iteration == 2:
            it.state.ema.shadow_params[0].view(-1)[0] = float("nan")
        return reddish(images, prompts, metadata)

    it.learner.reward = breaking
    with pytest.raises(NonFinite, match="EMA"):
        it.train()
    assert [folder.name for folder in list_checkpoints(it.folder / "checkpoints")][-1] == "000002"
    for folder in list_checkpoints(it.folder / "checkpoints"):
        assert all(value.double().isfinite().all() for value in load(folder).tensors.values())


def test_a_norm_beyond_float32_is_not_finite_either(started):
    it = started()
    before = image(it)
    with poisoned_gradient(it, 1e38), pytest.raises(NonFinite, match="gradient: 1 inf"):
        it.learner.run(SILENT)
    assert image(it) == before


def test_equal_rewards_are_finite(trainer):
    it = trainer(reward=constant, **{**CHANGES, "train": {"iterations": 1, "on_nonfinite": "skip"}})
    assert [e.skipped for e in run(it).iterations] == [0]
