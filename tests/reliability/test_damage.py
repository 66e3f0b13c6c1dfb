"""Bits that flip and files that end early: always detected, and nothing else is."""

from __future__ import annotations

import random

import pytest

from pcpo.errors import CheckpointError
from pcpo.trainer import checkpoint
from pcpo.trainer.protocol import MANIFEST
from snapshots import is_right, snapshot

FULL = [pytest.mark.slow, pytest.mark.reliability]


def detects(folder):
    try:
        checkpoint.load(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)
        return True
    return False


@pytest.fixture
def folder(ram):
    return checkpoint.save(ram, snapshot(5))


@pytest.mark.parametrize("flips", [25, pytest.param(200, marks=FULL)])
def test_flipped_bits(folder, measured, flips):
    dice = random.Random(0)
    tried = 0
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for _ in range(flips):
            place, bit = dice.randrange(len(data)), dice.randrange(8)
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            assert detects(folder), (path.name, place, bit)
            tried += 1
        path.write_bytes(data)
    assert is_right(checkpoint.load(folder))
    measured("bit_flips", per_file=flips, tried=tried, detected=tried)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=FULL)])
def test_every_bit_of_the_manifest(folder, measured, step):
    path = folder / MANIFEST
    data = path.read_bytes()
    places = range(0, 8 * len(data), step)
    for place in places:
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert detects(folder), place
    path.write_bytes(data)
    assert not detects(folder)
    measured("manifest_bits", bits=len(places), detected=len(places))


@pytest.mark.reliability
def test_files_cut_at_each_per_cent(folder, measured):
    tried = 0
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for per_cent in range(100):
            path.write_bytes(data[: len(data) * per_cent // 100])
            assert detects(folder), (path.name, per_cent)
            tried += 1
        path.write_bytes(data)
    measured("truncations", tried=tried, detected=tried)


@pytest.mark.parametrize("loads", [100, pytest.param(1000, marks=FULL)])
def test_good_checkpoints_are_not_refused(ram, measured, loads):
    for iteration in range(loads):
        size = 1 + iteration % 50
        assert is_right(checkpoint.load(checkpoint.save(ram, snapshot(iteration, size))), size)
    measured("good_loads", loads=loads, false_alarms=0)
