"""Figures that the tests measure, written as JSON on request; and the process that runs untrusted input."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from security.places import CONFIG
from security.worker import Worker

FIGURES = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--figures", type=Path, help="write what the security tests measure to this JSON file")


def pytest_configure(config):
    config.stash[FIGURES] = {}


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    path = config.getoption("--figures", default=None)
    if path is not None and exitstatus == 0:
        machine = {"python": platform.python_version(), "cpu_count": os.cpu_count()}
        found = dict(sorted(config.stash[FIGURES].items()))
        path.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n", "utf-8")


@pytest.fixture
def figures(pytestconfig):
    """figures(name, key=value, ...): note what was measured."""

    def note(name, **values):
        pytestconfig.stash[FIGURES].setdefault(name, {}).update(values)

    return note


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
