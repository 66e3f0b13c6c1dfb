"""kill -9 at any moment: nothing is lost beyond the last finished checkpoint, and the run ends as if unbroken."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest

from faults import count_calls, fork, killed_at, wait
from pcpo.errors import RunFolderError
from pcpo.observe.events import read_events
from pcpo.trainer import checkpoint, protocol
from pcpo.trainer.checkpoint import optimizer_tensors
from training import SMALL, figures, merge, same, weights

FULL = [pytest.mark.slow, pytest.mark.reliability]
# Everything that keeps a state, and several updates an iteration.
EVERYTHING = merge(
    SMALL,
    {
        "batch": {"prompts": 2},
        "train": {"updates": 2},
        "advantage": {"name": "running", "buffer": 4, "min_count": 2},
        "optim": {"ema_decay": 0.9},
    },
)


def newest(folder):
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    for path in found:
        protocol.verify(path)
    return int(found[-1].name) if found else 0


def assert_equal(resumed, straight):
    """The same weights, moments, averages and log, bit for bit."""
    assert same(weights(resumed), weights(straight))
    assert same(*(optimizer_tensors(it.state.optimizer) for it in (resumed, straight)))
    assert same(*(dict(enumerate(it.state.ema.shadow_params)) for it in (resumed, straight)))
    logs = [read_events(it.folder / "events.jsonl") for it in (resumed, straight)]
    assert figures(logs[0])[:2] == figures(logs[1])[:2]


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=FULL)])
def test_random_kills(trainer, ram, measured, kills):
    changes = merge(EVERYTHING, {"train": {"iterations": 2 * kills + 4}, "run": {"checkpoint_every": 1}})
    straight = trainer(output=ram / "straight", **changes)
    straight.train()
    folder, dice = ram / "run", random.Random(0)
    killed = resumed_from = lost = 0
    while killed < kills:
        exists = (folder / "config.yaml").exists()
        before = newest(folder)
        reader, writer = os.pipe()

        def train(exists=exists, writer=writer):
            it = trainer(output=folder, resume=exists, **changes)
            os.write(writer, it.state.iteration.to_bytes(4, "big"))
            it.train()

        pid = fork(train)
        os.close(writer)
        resumed_from = int.from_bytes(os.read(reader, 4), "big")
        os.close(reader)
        lost += before - resumed_from
        time.sleep(dice.uniform(0, 0.4))
        os.kill(pid, signal.SIGKILL)
        code = wait(pid)
        assert code in (-9, 0)
        killed += code == -9
        if code == 0:
            pytest.fail(f"the run ended after {killed} kills: it is too short for this test")
    assert lost == 0
    it = trainer(output=folder, resume=(folder / "config.yaml").exists(), **changes)
    assert it.state.iteration == newest(folder)
    it.train()
    assert_equal(it, straight)
    measured("random_kills", kills=killed, iterations_lost_beyond_checkpoint=lost, bitwise_equal=True)


@pytest.mark.parametrize("stride", [21, pytest.param(1, marks=FULL)], ids="every {}".format)
def test_killed_in_a_save_and_resumed(trainer, ram, measured, stride):
    """At every call of the save at iteration 2 of 3, of a run that keeps one checkpoint."""
    changes = merge(EVERYTHING, {"train": {"iterations": 3}, "run": {"checkpoint_every": 1, "keep_checkpoints": 1}})
    straight, calls = trainer(output=ram / "straight", **changes), []
    original = straight.saver.save
    straight.saver.save = lambda events: calls.append(count_calls(lambda: original(events)))
    straight.train()
    places = range(0, len(calls[1]), stride)
    for place in places:
        folder = ram / f"{place}"

        def die(folder=folder, place=place):
            it = trainer(output=folder, **changes)
            save = it.saver.save

            def fatal(events):
                if it.state.iteration == 1:
                    return save(events)
                with killed_at(place):
                    return save(events)

            it.saver.save = fatal
            it.train()

        assert wait(fork(die)) == -9
        assert newest(folder) in (1, 2)
        resumed = trainer(output=folder, resume=True, **changes)
        assert resumed.state.iteration == newest(folder)
        resumed.train()
        assert_equal(resumed, straight)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["000003"]
    measured("killed_in_a_save", places=len(places), resumed=len(places), bitwise_equal=True)


def test_five_resumes_are_none(trainer, ram):
    iterations = {"iterations": 6}
    straight = trainer(output=ram / "straight", **merge(EVERYTHING, {"train": iterations}))
    straight.train()
    for done in range(1, 7):
        changes = merge(EVERYTHING, {"train": {"iterations": done}, "run": {"checkpoint_every": 1}})
        it = trainer(output=ram / "run", resume=done > 1, **changes)
        assert it.state.iteration == done - 1
        it.train()
    it_weights = weights(it)
    assert same(it_weights, weights(straight)) and same(
        *(optimizer_tensors(one.state.optimizer) for one in (it, straight))
    )


def test_a_run_in_use_is_refused_and_a_killed_one_is_not(trainer, ram):
    changes = merge(SMALL, {"train": {"iterations": 1000}, "run": {"checkpoint_every": 1}})
    waiting = trainer(output=ram / "run", **changes)
    pid = fork(lambda: trainer(output=ram / "run", **changes).train())
    try:
        deadline = time.monotonic() + 60
        while not newest(ram / "run") and time.monotonic() < deadline:
            time.sleep(0.02)
        for resume in (True, False):
            with pytest.raises(RunFolderError, match=f"is in use by process {pid} on "):
                trainer(output=ram / "run", resume=resume, **changes)
        with pytest.raises(RunFolderError, match=f"is in use by process {pid} on "):
            waiting.train()
    finally:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    assert json.loads((ram / "run/run.lock").read_text())["pid"] == pid
    with pytest.raises(RunFolderError, match="already holds a run"):
        waiting.train()
    done = newest(ram / "run")
    again = trainer(output=ram / "run", resume=True, **merge(changes, {"train": {"iterations": done + 1}}))
    again.train()
    assert again.state.iteration == done + 1 and not (ram / "run/run.lock").exists()


def test_a_trainer_whose_run_went_on_elsewhere_is_refused(trainer, ram):
    changes = merge(SMALL, {"run": {"checkpoint_every": 1}})
    trainer(output=ram / "run", **changes).train()
    longer = merge(changes, {"train": {"iterations": 2}})
    early = trainer(output=ram / "run", resume=True, **longer)
    trainer(output=ram / "run", resume=True, **longer).train()
    with pytest.raises(RunFolderError, match="was continued by another process"):
        early.train()


def test_a_damaged_newest_checkpoint_is_passed_over_with_one_warning_and_kept(trainer, ram):
    changes = merge(EVERYTHING, {"train": {"iterations": 3}, "run": {"checkpoint_every": 1}})
    straight = trainer(output=ram / "run", **changes)
    straight.train()
    damaged = ram / "run/checkpoints/000003/weight.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    resumed = trainer(output=ram / "run", resume=True, **changes)
    assert resumed.state.iteration == 2
    assert damaged.is_file()  # nothing is touched before the run is begun
    resumed.train()
    assert same(weights(resumed), weights(straight))
    log = read_events(ram / "run/events.jsonl")
    assert [w.split(": ")[0] for w in log.warnings] == [
        "resumed from checkpoint 000002, for newer ones are not valid (kept as .bad)"
    ]
    assert (ram / "run/checkpoints/000003.bad/weight.safetensors").is_file() and newest(ram / "run") == 3
