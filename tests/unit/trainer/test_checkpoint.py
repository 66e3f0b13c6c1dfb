from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from pcpo.errors import CheckpointError
from pcpo.trainer import checkpoint, protocol
from pcpo.trainer.checkpoint import Snapshot
from pcpo.trainer.random_state import RandomState

TENSORS = {
    "weight.a": torch.arange(6.0).reshape(2, 3),
    "weight.half": torch.ones(3, dtype=torch.bfloat16) / 3,
    "optimizer.0.step": torch.tensor(3.0),
}


def snapshot(iteration=3, **record):
    return Snapshot(iteration, TENSORS, record, RandomState.capture(), {"run": {"seed": 5}})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_everything_comes_back_and_random_numbers_go_on(tmp_path):
    def draw():
        return (
            torch.rand(4).tolist(),
            random.random(),
            random.gauss(0, 1),
            np.random.rand(3).tolist(),
            np.random.randn(),
        )

    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    random.gauss(0, 1), np.random.randn()  # both keep the second of a pair
    folder = checkpoint.save(tmp_path, snapshot(iteration=3, running={"a": [1.5]}))
    assert folder == tmp_path / "000003"
    assert names(folder) == [
        "manifest.json",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
        "weight.safetensors",
    ]
    expected = draw()
    torch.manual_seed(9), random.seed(9), np.random.seed(9)
    found = checkpoint.load(folder)
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[key], TENSORS[key]) for key in TENSORS)
    assert (found.iteration, found.record, found.config) == (3, {"running": {"a": [1.5]}}, {"run": {"seed": 5}})
    found.random.restore()
    assert draw() == expected


def test_the_newest_are_kept_and_unfinished_ones_do_not_count(tmp_path):
    for iteration in (2, 10, 1_000_000):
        checkpoint.save(tmp_path, snapshot(iteration))
        protocol.retire(tmp_path, keep=2)
    (tmp_path / "000040.tmp").mkdir()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["000010", "1000000"]
    assert checkpoint.list_checkpoints(tmp_path / "absent") == []


def test_a_damaged_one_neither_counts_as_kept_nor_goes(tmp_path):
    for iteration in (1, 2, 3, 4):
        checkpoint.save(tmp_path, snapshot(iteration))
    (tmp_path / "000003/state.json").write_text("{}")
    protocol.retire(tmp_path, keep=2)
    assert names(tmp_path) == ["000002", "000003", "000004"]


def test_what_a_dead_process_left_is_swept_and_nothing_else(tmp_path):
    checkpoint.save(tmp_path, snapshot(1))
    for name in ("000002.tmp", "000001.old", "000003.bad", "notes.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rest").write_text("")
    protocol.sweep(tmp_path)
    assert names(tmp_path) == ["000001", "000003.bad", "notes.tmp"]
    protocol.sweep(tmp_path / "absent")


def test_a_valid_checkpoint_is_not_written_again_and_a_damaged_one_is_put_aside(tmp_path):
    folder = checkpoint.save(tmp_path, snapshot(1))
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert checkpoint.save(tmp_path, snapshot(1)) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    for count in (1, 2):
        (folder / "weight.safetensors").write_bytes(b"")
        checkpoint.save(tmp_path, snapshot(1))
        assert checkpoint.load(folder) and len(names(tmp_path)) == 1 + count
    assert names(tmp_path) == ["000001", "000001.bad", "000001.bad2"]


def test_the_newest_valid_one_is_found(tmp_path):
    assert checkpoint.load_newest(tmp_path) == (None, []) and checkpoint.newest_config(tmp_path) is None
    for iteration in (1, 2, 3):
        checkpoint.save(tmp_path, snapshot(iteration))
    (tmp_path / "000003/weight.safetensors").unlink()
    found, refused = checkpoint.load_newest(tmp_path)
    assert found.iteration == 2 and [error.where for error in refused] == [str(tmp_path / "000003")]
    assert checkpoint.newest_config(tmp_path) == (3, {"run": {"seed": 5}})
    (tmp_path / "000002/manifest.json").unlink()
    (tmp_path / "000001/state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint is valid"):
        checkpoint.load_newest(tmp_path)
    assert names(tmp_path) == ["000001", "000002", "000003"]


def test_a_checkpoint_of_an_older_version_is_named_as_such(tmp_path):
    (tmp_path / "000001").mkdir()
    (tmp_path / "000001/state.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="has no manifest: it is incomplete, or of a version before format 2"):
        checkpoint.load(tmp_path / "000001")


def forged(**changes):
    """A manifest with other fields and the right hash over them."""

    def damage(folder):
        body = json.loads((folder / "manifest.json").read_text())
        del body["sha256"]
        body |= changes
        text = protocol._json({**body, "sha256": protocol.digest(protocol._json(body))})
        (folder / "manifest.json").write_bytes(text)

    return damage


def written(name, data):
    return lambda folder: (folder / name).write_bytes(data)


ENTRY = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        written("state.json", b"{}"),
        written("weight.safetensors", b""),
        written("manifest.json", b""),
        written("manifest.json", b"[]"),
        written("manifest.json", b"\xff"),
        written("manifest.json", b"[" * 100_000),
        forged(format=99),
        forged(iteration="3"),
        forged(files=[]),
        forged(files={}),
        forged(files={"a.json": 3}),
        forged(files={"../../secret.json": ENTRY}),
        forged(files={"manifest.json": ENTRY}),
        forged(files={"state.json": {"size": 1, "sha256": 5}}),
        forged(config="0" * 64),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    folder = checkpoint.save(tmp_path, snapshot())
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_the_optimiser_goes_on_bit_for_bit():
    def steps(optimizer, parameter, count):
        for n in range(count):
            parameter.grad = torch.sin(parameter.detach() + n)
            optimizer.step()

    a = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    one = torch.optim.AdamW([a], lr=0.1)
    steps(one, a, 3)
    b = torch.nn.Parameter(a.detach().clone())
    other = torch.optim.AdamW([b], lr=0.1)
    stored = {name: tensor.clone() for name, tensor in checkpoint.optimizer_tensors(one).items()}
    checkpoint.restore_optimizer(other, stored)
    steps(one, a, 2), steps(other, b, 2)
    assert torch.equal(a, b)
