"""Killed or cut off anywhere in a save: what is there is valid, and it is the newest that was finished."""

from __future__ import annotations

import os
import shutil
from functools import partial

import pytest

import faults
from faults import count_calls, fork, killed_at, wait
from pcpo.trainer import checkpoint, protocol
from snapshots import is_right, save


def check(parent, at_least):
    """All finished folders are valid and right; the newest is `at_least`, which may be 0 for none."""
    found = [checkpoint.load(folder) for folder in checkpoint.list_checkpoints(parent)]
    assert all(is_right(one) for one in found)
    assert max((one.iteration for one in found), default=0) >= at_least


@pytest.mark.reliability
@pytest.mark.parametrize("keep", [1, 2])
def test_killed_at_every_call_of_a_save(ram, measured, keep):
    calls = _prepared_calls(ram, keep)
    places = [(place, False) for place in range(len(calls) + 1)]
    places += [(place, True) for place, name in enumerate(calls) if name == "write"]
    assert {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"} <= set(calls)
    killed = 0
    for number, (place, half) in enumerate(places):
        parent = ram / f"{number}"
        save(parent, 1, keep)
        save(parent, 2, keep)

        def die(parent=parent, place=place, half=half):
            with killed_at(place, half):
                save(parent, 3, keep)

        killed += wait(fork(die)) == -9
        check(parent, at_least=2)
        protocol.sweep(parent)
        save(parent, 3, keep)
        assert [path.name for path in sorted(parent.iterdir())] == ["000002", "000003"][-keep:]
        check(parent, at_least=3)
        shutil.rmtree(parent)
    assert killed == len(places) - 1  # the last place is after the end
    measured(f"killed_at_every_call_keep_{keep}", calls=len(calls), killed=killed, resumed=killed)


def _prepared_calls(ram, keep):
    parent = ram / "counted"
    save(parent, 1, keep)
    save(parent, 2, keep)
    return count_calls(partial(save, parent, 3, keep))


@pytest.mark.parametrize(
    "saves", [2, pytest.param(3, marks=[pytest.mark.slow, pytest.mark.reliability])], ids="{} saves".format
)
def test_writes_that_were_not_synced_are_dropped(ram, measured, saves):
    """Every state in which a power cut may leave the disk during saves that keep one checkpoint."""
    root = ram / "recorded"
    root.mkdir()
    recorder, finished = faults.Recorder(root), {0: 0}
    with faults.watched(recorder):
        for iteration in range(1, saves + 1):
            save(root / "checkpoints", iteration, keep=1)
            finished[len(recorder.log)] = iteration
    seen = set()
    for length in range(len(recorder.log) + 1):
        durable = max(iteration for end, iteration in finished.items() if end <= length)
        for tree in faults.crash_states(recorder, length):
            key = (durable, *tree.items())
            if key in seen:
                continue
            seen.add(key)
            planted = ram / "planted"
            faults.plant(tree, planted)
            check(planted / "checkpoints", at_least=durable)
            newest, refused = checkpoint.load_newest(planted / "checkpoints")
            assert not refused and (newest is None) == (not checkpoint.list_checkpoints(planted / "checkpoints"))
            shutil.rmtree(planted)
    assert finished[len(recorder.log)] == saves and len(seen) > 100
    measured("power_cut", saves=saves, disk_operations=len(recorder.log), states=len(seen), valid=len(seen))


def test_the_simulation_finds_a_protocol_that_does_not_sync(ram, monkeypatch):
    """The same check on a protocol that syncs nothing: it has to fail."""
    root = ram / "recorded"
    root.mkdir()
    recorder = faults.Recorder(root)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with faults.watched(lambda name, *rest: None if name == "fsync" else recorder(name, *rest)):
        save(root, 1, keep=1)
    broken = 0
    for number, tree in enumerate(faults.crash_states(recorder, len(recorder.log))):
        faults.plant(tree, ram / f"{number}")
        found = checkpoint.list_checkpoints(ram / f"{number}")
        broken += any(not _is_valid(folder) for folder in found)
        if broken:
            return
    pytest.fail("no state was broken")


def _is_valid(folder):
    try:
        checkpoint.load(folder)
    except checkpoint.CheckpointError:
        return False
    return True
