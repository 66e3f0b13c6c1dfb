"""Encoded prompts on disk: exact, whole, told apart by all that they follow from, and never trusted unread."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import tiny
from pcpo.errors import RunFolderError
from pcpo.models.embeddings import DiskEmbeddings, encoder_identity

ROWS = {
    "prompt_embeds": torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "mask": torch.tensor([[1, 1, 0, 0, 0]]),
}


def test_what_is_stored_comes_back_bit_for_bit(tmp_path):
    store = DiskEmbeddings(tmp_path / "new", "a")
    assert store.get("red") is None and store.get(None) is None
    store["red"] = ROWS
    found = DiskEmbeddings(tmp_path / "new", "a").get("red")
    assert found.keys() == ROWS.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in ROWS.items())
    for other in (DiskEmbeddings(tmp_path / "new", "b").get("red"), store.get("Red"), store.get(None), store.get("")):
        assert other is None
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


@pytest.mark.parametrize("damage", [lambda d: d[:-3], lambda d: b"", lambda d: d[:-1] + bytes([d[-1] ^ 1])])
def test_a_damaged_file_is_none(tmp_path, damage):
    store = DiskEmbeddings(tmp_path, "a")
    store["red"] = ROWS
    path = store.path("red")
    path.write_bytes(damage(path.read_bytes()))
    assert store.get("red") is None
    store["red"] = ROWS
    assert store.get("red") is not None


def test_a_file_of_another_prompt_is_none(tmp_path):
    store = DiskEmbeddings(tmp_path, "a")
    store["red"] = ROWS
    store.path("blue").parent.mkdir(parents=True, exist_ok=True)
    store.path("red").rename(store.path("blue"))
    assert store.get("blue") is None


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        DiskEmbeddings(tmp_path / "file", "a")["red"] = ROWS


WRITER = """
import sys, torch
from pcpo.models.embeddings import DiskEmbeddings
store = DiskEmbeddings(sys.argv[1], "a")
for _ in range(100):
    store["red"] = {"prompt_embeds": torch.arange(4096.0)[None]}
"""


def test_several_processes_share_it(tmp_path):
    store, rows = DiskEmbeddings(tmp_path, "a"), {"prompt_embeds": torch.arange(4096.0)[None]}
    store["red"] = rows
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    while process.poll() is None:
        assert torch.equal(store.get("red")["prompt_embeds"], rows["prompt_embeds"])
        store["red"] = rows
    assert process.returncode == 0 and not list(tmp_path.rglob("*.tmp"))


def test_an_identity_differs_where_embeddings_may():
    def identity(change=lambda pipe: None, family="Family", length=None):
        pipe = tiny.stable_diffusion()
        change(pipe)
        return encoder_identity(family, [pipe.text_encoder, pipe.tokenizer], {"max_sequence_length": length})

    def one_weight(pipe):
        with torch.no_grad():
            pipe.text_encoder.get_parameter("final_layer_norm.weight")[3] += 1e-3

    def tokenizer(pipe):
        pipe.tokenizer = tiny.clip_tokenizer(max_length=12)

    same = identity()
    assert same == identity()
    others = [
        identity(one_weight),
        identity(lambda pipe: pipe.text_encoder.bfloat16()),
        identity(tokenizer),
        identity(family="Other"),
        identity(length=12),
    ]
    assert len({same, *others}) == 6
