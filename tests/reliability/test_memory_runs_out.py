"""Out of memory at random places: fewer rows a call, same pictures, same gradient; or an error with advice."""

from __future__ import annotations

import random

import pytest
import torch

import training
from pcpo.errors import MemoryLimitError
from pcpo.trainer.checkpoint import list_checkpoints, load
from pcpo.trainer.memory import is_out_of_memory
from training import SILENT, first_gradient, reddish, run, same, weights

PLACES = ["rollout", "decode", "forward", "backward"]
CALLS = {"rollout": 4, "decode": 1, "forward": 4, "backward": 4}  # of an iteration of six pictures and four steps
EXHAUSTED = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Exhausted:
    """No memory left at call number `at` of a place, and with more than `rows` pictures or pairs wherever it is set."""

    def __init__(self, it, place, at=0, rows=None):
        self.it, self.place, self.at, self.rows, self.count, self.raised = it, place, at, rows, -1, 0
        if place == "decode":
            decode = it.adapter.decode
            it.adapter.decode = lambda latents: self.ask(len(latents)) or decode(latents)
        else:
            it.adapter.unwrapped.register_forward_hook(self.hook)

    def hook(self, module, inputs, output):
        size = len(output[0]) // 2  # with guidance, two rows for each
        if torch.is_grad_enabled() == (self.place == "rollout"):
            return
        if self.place == "backward":
            output[0].register_hook(lambda gradient: self.ask(size))
        else:
            self.ask(size)

    def ask(self, size):
        self.count += 1
        if size > self.rows if self.rows is not None else self.count == self.at:
            self.raised += 1
            raise torch.OutOfMemoryError(EXHAUSTED)


def watched(trainer, double, seen, **changes):
    """A float64 trainer whose reward keeps the pictures in `seen`."""

    def reward(images, prompts, metadata):
        seen.append(images)
        return reddish(images, prompts, metadata)

    return double(trainer(reward=reward, **changes))


@pytest.mark.reliability
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_pictures_and_gradient_stay_the_same_wherever_it_happens(trainer, double, measured, family):
    """Ten random places, float64: the pictures are equal, the gradient but for the order of its sum."""
    draw, seen = random.Random(5), []
    whole = first_gradient(watched(trainer, double, seen, family=family))
    worst = 0.0
    places = PLACES + [draw.choice(PLACES) for _ in range(10 - len(PLACES))]
    for place in places:
        it = watched(trainer, double, seen, family=family)
        exhausted = Exhausted(it, place, draw.randrange(CALLS[place]))
        gradient = first_gradient(it)
        assert exhausted.raised == 1
        kind = place if place in ("rollout", "decode") else "micro"
        assert it.learner.sizes.halvings == {"rollout": 0, "decode": 0, "micro": 0} | {kind: 1}
        assert torch.equal(seen[-1], seen[0])
        worst = max(worst, float((gradient - whole).norm() / whole.norm()))
    assert whole.dtype == torch.float64 and worst < 1e-12
    measured(f"out_of_memory_{family}", places=len(places), pictures_changed=0, gradient_float64=worst)


@pytest.mark.parametrize(
    "place, batch", [("backward", {"rollout": 6, "micro": 3}), ("rollout", {"rollout": 3, "micro": 6})]
)
def test_from_then_on_it_is_the_run_with_the_smaller_calls(trainer, place, batch):
    """Bit for bit, metrics included, over two iterations of two updates; only the first fails, the size is kept."""
    changes = {"train": {"iterations": 2, "updates": 2}}
    failing = trainer(output="failing", **changes)
    exhausted = Exhausted(failing, place, rows=3)
    if place == "rollout":  # the evaluation before the first iteration samples in smaller calls already
        failing.evaluator.sizes = type(failing.evaluator.sizes)(failing.config)
        exhausted.rows = None
        exhausted.at = 3
    log = run(failing)
    assert exhausted.raised == 1
    smaller = trainer(output="smaller", batch=batch, **changes)
    expected = run(smaller)
    assert same(weights(failing), weights(smaller))
    timeless = {"seconds", "pictures_per_second"}
    for event, other in zip(log.iterations, expected.iterations, strict=True):
        assert event.model_dump(exclude=timeless) == other.model_dump(exclude=timeless)
    (warning,) = [w for w in log.warnings if "out of memory" in w]
    assert "6" in warning and "3" in warning and "halving 1 of at most 3" in warning


def test_three_halvings_then_a_checkpoint_and_advice(trainer):
    it = trainer(batch={"prompts": 4, "group_size": 8}, train={"iterations": 4}, run={"checkpoint_every": 100})
    count = 0

    def later(images, prompts, metadata):
        nonlocal count
        count += 1
        if count == 3:  # an evaluation and an iteration are over
            Exhausted(it, "backward", rows=0)
        return reddish(images, prompts, metadata)

    it.learner.reward = later
    with pytest.raises(MemoryLimitError, match=r"4 \(picture, step\) pairs a call, after 3 halvings .*batch.micro"):
        it.train()
    (saved,) = list_checkpoints(it.folder / "checkpoints")
    assert saved.name == "000002"


def test_one_row_that_does_not_fit_ends_it_at_once(trainer):
    it = trainer(batch={"rollout": 2})
    Exhausted(it, "decode", rows=0)
    with pytest.raises(MemoryLimitError, match=r"1 pictures a decoding, after 1 halvings .*vae_slicing"):
        it.learner.run(SILENT)


def test_a_measured_credit_schedule_starts_its_measurement_again(trainer):
    def first(place=None):
        it = trainer(credit={"schedule": "adaptive"}, batch={"micro": 2}, output=str(place))
        if place:
            Exhausted(it, place, at=2)
        return run(it).credits[-1]

    calm, shaken = first(), first("backward")
    torch.testing.assert_close(torch.tensor(shaken.noise), torch.tensor(calm.noise), rtol=1e-3, atol=0)


def test_the_size_survives_a_restart_unless_it_is_set_anew(trainer):
    it = trainer()
    Exhausted(it, "forward", at=0)
    run(it)
    more = {"train": {"iterations": 2}}
    saved = load(it.folder / "checkpoints/000001")
    same_settings, other = trainer(output="a", **more), trainer(output="b", batch={"micro": 4}, **more)
    for again, expected in ((same_settings, 3), (other, 4)):
        again.state.restore(saved)
        assert again.learner.sizes["micro"] == expected


class UntilCheckpointed(Exhausted):
    """No memory left in any backward pass without gradient checkpointing."""

    def ask(self, size):
        if not self.it.adapter.unwrapped.is_gradient_checkpointing:
            super().ask(size)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_checkpointing_comes_when_nothing_is_left_to_halve(trainer, family):
    """Bit for bit the run with the smallest calls, metrics included; a resumed run has it on from its start."""
    changes = {"batch": {"rollout": 2}, "train": {"iterations": 2, "updates": 2}}
    it = trainer(family, output="auto", model={"gradient_checkpointing": "auto"}, **changes)
    assert not it.adapter.unwrapped.is_gradient_checkpointing
    exhausted = UntilCheckpointed(it, "backward", rows=0)
    log = run(it)
    assert exhausted.raised == 2 and it.adapter.unwrapped.is_gradient_checkpointing
    halving, switch = [w for w in log.warnings if "out of memory" in w]
    assert (
        "halving 1" in halving and "with 1 (picture, step) pairs a call: gradient checkpointing from now on" in switch
    )

    smallest = trainer(family, output="smallest", **training.merge(changes, {"batch": {"micro": 1}}))
    expected = run(smallest)
    assert same(weights(it), weights(smallest))
    timeless = {"seconds", "pictures_per_second"}
    for event, other in zip(log.iterations, expected.iterations, strict=True):
        assert event.model_dump(exclude=timeless) == other.model_dump(exclude=timeless)

    saved = load(it.folder / "checkpoints/000002")
    again = trainer(family, output="again", model={"gradient_checkpointing": "auto"}, **changes)
    again.state.restore(saved)
    assert again.adapter.unwrapped.is_gradient_checkpointing and again.learner.sizes["micro"] == 1
    whole = trainer(family, output="off", **changes)
    whole.state.restore(saved)
    assert not whole.adapter.unwrapped.is_gradient_checkpointing


def test_after_checkpointing_it_ends_with_advice(trainer):
    it = trainer(model={"gradient_checkpointing": "auto"}, batch={"micro": 1})
    Exhausted(it, "backward", rows=0)
    with pytest.raises(MemoryLimitError, match="after 0 halvings and gradient checkpointing"):
        it.learner.run(SILENT)


def test_only_memory_errors_are_taken_for_one(trainer):
    it = trainer()

    def broken(latents):
        raise RuntimeError("shapes do not match")

    it.adapter.decode = broken
    with pytest.raises(RuntimeError, match="shapes"):
        it.learner.run(SILENT)
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
