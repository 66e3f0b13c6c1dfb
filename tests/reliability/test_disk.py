"""A disk that is full or broken: nothing old is lost, nothing half is left, the run goes on and says so."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections import namedtuple

import pytest
import torch

from faults import REFUSALS, count_calls, refused_at
from pcpo.errors import CheckpointError, RunFolderError
from pcpo.observe.events import EventWriter, read_events
from pcpo.trainer import checkpoint, protocol
from pcpo.trainer.loop import PCPOTrainer
from snapshots import is_right, save, snapshot
from training import SMALL, merge, reddish, same, weights


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.reliability
@pytest.mark.parametrize("code", REFUSALS)
def test_every_call_of_a_save_refused(ram, measured, code):
    save(ram / "counted", 2, keep=2)
    calls = count_calls(lambda: checkpoint.save(ram / "counted", snapshot(3)))
    parent = ram / "checkpoints"
    save(parent, 1, keep=2)
    save(parent, 2, keep=2)
    for place, name in enumerate(calls):
        with pytest.raises(CheckpointError, match="cannot be saved"), refused_at(place, REFUSALS[code]):
            checkpoint.save(parent, snapshot(3))
        left = names(parent)
        # when the last fsync fails the new one is there and valid, though maybe not after a power cut
        assert left == ["000001", "000002"] or (
            left == ["000001", "000002", "000003"] and place > calls.index("rename")
        )
        assert all(is_right(checkpoint.load(folder)) for folder in checkpoint.list_checkpoints(parent)), name
        shutil.rmtree(parent / "000003", ignore_errors=True)
    measured(f"refused_{code}", calls=len(calls), older_intact=len(calls), left_over=0)


@pytest.mark.parametrize(
    "stride", [21, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.reliability])], ids="every {}".format
)
@pytest.mark.parametrize("code", REFUSALS)
def test_a_run_goes_on_with_one_warning(trainer, ram, measured, code, stride):
    """The save at iteration 2 of 3 is refused at each of its calls; the weights are those of a run without faults."""
    changes = {**SMALL, "train": {"iterations": 3}, "run": {"checkpoint_every": 1}}
    straight = trainer(output=ram / "straight", **changes)
    straight.train()

    def faulty(it, place, at=2):
        original = it.saver.save

        def save_refused(events):
            if it.state.iteration != at:
                return original(events)
            with refused_at(place, REFUSALS[code]):
                return original(events)

        it.saver.save = save_refused
        return it

    calls = _calls_of_a_save(trainer, ram / "counted", changes)
    tried = 0
    for place in range(0, len(calls), stride):
        it = faulty(trainer(output=ram / f"run{place}", **changes), place)
        it.train()
        log = read_events(it.folder / "events.jsonl")
        assert len(log.warnings) == 1, (place, calls[place], log.warnings)
        assert same(weights(it), weights(straight)) and [e.iteration for e in log.iterations] == [1, 2, 3]
        folders = checkpoint.list_checkpoints(it.folder / "checkpoints")
        assert [checkpoint.load(folder).iteration for folder in folders][-1] == 3
        assert names(it.folder / "checkpoints") == [folder.name for folder in folders] and len(folders) == 2
        tried += 1
    measured(f"run_goes_on_{code}", calls=tried, warnings_each=1, completed=tried)


def _calls_of_a_save(trainer, folder, changes):
    it = trainer(output=folder, **changes)
    original, calls = it.saver.save, []

    def counted(events):
        if it.state.iteration == 2:
            calls.extend(count_calls(lambda: original(events)))
        else:
            original(events)

    it.saver.save = counted
    it.train()
    return calls


def test_a_run_whose_last_save_fails_says_so_at_the_end(trainer, ram):
    it = trainer(output=ram / "run", **SMALL)
    original = it.saver.save

    def refused(events):
        with refused_at(3, REFUSALS["ENOSPC"]):
            return original(events)

    it.saver.save = refused
    with pytest.raises(CheckpointError, match=r"is finished .* last checkpoint cannot be saved .No space") as caught:
        it.train()
    assert caught.value.exit_code == 7 and (it.folder / "lora").is_dir()
    assert read_events(it.folder / "events.jsonl").end.reason == "finished"
    again = trainer(output=ram / "run", resume=True, **SMALL)
    again.train()
    assert same(weights(again), weights(it))


def test_too_little_space_is_refused_before_the_start(trainer, ram, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(RunFolderError, match=r"has 0 MB free, and the run's checkpoints and pictures need"):
        trainer(output=ram / "run")
    assert not (ram / "run").exists()


class Refusing:
    """A file that takes half of what it is given, then nothing, until there is space again."""

    def __init__(self, file):
        self.file, self.full = file, False

    def write(self, data):
        if self.full:
            raise OSError(REFUSALS["ENOSPC"], "No space left on device")
        self.full = True
        return self.file.write(data[: len(data) // 2])

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_events_that_the_disk_refuses_wait(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("warning", message="first")
    writer._file = Refusing(writer._file)
    writer.write("warning", message="second")
    writer.write("warning", message="third")
    assert writer.refused.strerror == "No space left on device"
    assert read_events(writer.path).warnings == ["first"]
    with pytest.raises(OSError, match="No space"):
        writer.sync()
    writer._file = writer._file.file
    writer.write("warning", message="fourth")
    assert writer.refused is None
    writer.close()
    assert read_events(writer.path).warnings == ["first", "second", "third", "fourth"]


def test_events_that_are_lost_in_the_end_are_an_error(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer._file = Refusing(writer._file)
    with pytest.raises(RunFolderError, match=r"last events could not be written .No space"), writer:
        writer.write("warning", message="one")


@pytest.mark.slow
@pytest.mark.reliability
def test_what_a_checkpoint_costs(tmp_path, measured):
    """Time of the processor and of the disk for the LoRA of an embedded model, median of twenty."""
    it = PCPOTrainer(model="emoji-sd", reward=reddish, config=merge(SMALL, {"run": {"output": str(tmp_path / "run")}}))
    for parameter in it.state.parameters:
        parameter.grad = torch.ones_like(parameter)
    it.state.step()
    config, costs, fsync, synced = it.config.model_dump(mode="json"), [], os.fsync, [0.0]

    def timed(descriptor):
        began = time.perf_counter()
        fsync(descriptor)
        synced[0] += time.perf_counter() - began

    os.fsync = timed
    try:
        for iteration in range(1, 22):
            it.state.iteration, synced[0] = iteration, 0.0
            wall, processor = time.perf_counter(), time.process_time()
            checkpoint.save(tmp_path / "checkpoints", it.state.snapshot(config))
            protocol.retire(tmp_path / "checkpoints", 2)
            costs.append((time.process_time() - processor, time.perf_counter() - wall - synced[0], synced[0]))
    finally:
        os.fsync = fsync
    cpu, beyond, disk = (statistics.median(column) for column in zip(*costs, strict=True))
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoints/000021").iterdir())
    measured(
        "cost_of_a_checkpoint",
        bytes=size,
        processor_milliseconds=1e3 * cpu,
        wall_milliseconds_beyond_fsync=1e3 * beyond,
        fsync_milliseconds=1e3 * disk,
    )
    assert cpu < 0.05
