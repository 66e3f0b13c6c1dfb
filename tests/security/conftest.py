"""The process that runs untrusted input, and a sound run to spoil."""

from __future__ import annotations

import pytest

from security.places import CONFIG
from security.worker import Worker


@pytest.fixture(scope="session")
def worker(tmp_path_factory):
    """A process that has the library loaded and runs each job in a fork of its own, under limits."""
    with Worker(tmp_path_factory.mktemp("worker")) as running:
        yield running


@pytest.fixture(scope="session")
def sound(worker, folders, tmp_path_factory):
    """A finished run of two iterations."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "tiny.yaml").write_text(CONFIG.format(model=folders["sd"], output=folder / "run"), "utf-8")
    outcome = worker.run("command", "train", folder / "tiny.yaml", "--quiet", mib=8192, seconds=120)
    assert outcome.kind == "ok", outcome
    return folder / "run"
