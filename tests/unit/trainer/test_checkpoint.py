from __future__ import annotations

import json
import random

import pytest
import torch

from pcpo.errors import CheckpointError
from pcpo.trainer import checkpoint

TENSORS = {"weight.a": torch.arange(6.0).reshape(2, 3), "weight.half": torch.ones(3, dtype=torch.bfloat16) / 3}


def test_everything_comes_back_and_random_numbers_go_on(tmp_path):
    torch.manual_seed(5), random.seed(5)
    folder = checkpoint.save(tmp_path / "000003", TENSORS, {"iteration": 3, "running": {"a": [1.5]}})
    expected = torch.rand(4), random.random(), random.gauss(0, 1)
    torch.manual_seed(9), random.seed(9)
    tensors, state = checkpoint.load(folder)
    assert tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)
    assert state == {"iteration": 3, "running": {"a": [1.5]}}
    assert torch.equal(torch.rand(4), expected[0]) and (random.random(), random.gauss(0, 1)) == expected[1:]


def test_the_newest_are_kept_and_unfinished_ones_do_not_count(tmp_path):
    for iteration in (2, 10, 30):
        checkpoint.save(tmp_path / f"{iteration:06d}", TENSORS, {}, keep=2)
    (tmp_path / "000040.tmp").mkdir()
    (tmp_path / "000050").mkdir()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["000010", "000030"]
    assert checkpoint.list_checkpoints(tmp_path / "absent") == []


def test_saving_again_replaces_the_whole_folder(tmp_path):
    folder = checkpoint.save(tmp_path / "000001", TENSORS, {"iteration": 1})
    (tmp_path / "000001.tmp").mkdir()
    (tmp_path / "000001.tmp/rest").write_text("of a killed process")
    checkpoint.save(folder, {"weight.b": torch.zeros(1)}, {"iteration": 1})
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "state.safetensors"]
    assert checkpoint.load(folder)[0].keys() == {"weight.b"} and list(tmp_path.iterdir()) == [folder]


def truncate(folder):
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def rewrite(**changes):
    def damage(folder):
        path = folder / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda folder: (folder / "state.safetensors").unlink(),
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "state.json").write_text("[]"),
        lambda folder: (folder / "state.json").write_bytes(b"\xff"),
        lambda folder: (folder / "state.safetensors").write_bytes(b""),
        rewrite(format=99),
        rewrite(**{"random.python": [3, [1, 2], None]}),
        rewrite(**{"random.python": None}),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    folder = checkpoint.save(tmp_path / "000001", TENSORS, {})
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
