"""Figures that the tests measure, written as JSON on request; and a place for runs where fsync costs nothing."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path

import pytest
import torch

MEASURED = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--measured", type=Path, help="write what the reliability tests measure to this JSON file")


def pytest_configure(config):
    config.stash[MEASURED] = {}


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    path = config.getoption("--measured", default=None)
    if path is not None and exitstatus == 0:
        machine = {"python": platform.python_version(), "torch": torch.__version__, "cpu_count": os.cpu_count()}
        found = dict(sorted(config.stash[MEASURED].items()))
        path.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n", "utf-8")


@pytest.fixture
def measured(pytestconfig):
    """measured(name, key=value, ...): note what was measured; the figures of the fuller run stay."""

    def note(name, **values):
        if MEASURED in pytestconfig.stash:
            pytestconfig.stash[MEASURED][name] = values

    return note


@pytest.fixture
def ram(tmp_path):
    """A folder in memory where there is one. A killed process loses nothing there that it would keep on a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
