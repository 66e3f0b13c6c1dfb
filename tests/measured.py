"""Figures that tests note: gathered from all processes of a test run, and written as JSON with --figures FILE."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

import pytest
import torch

FIGURES = pytest.StashKey[dict]()
STARTED = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption("--figures", type=Path, help="write what the tests measure to this JSON file, if all of them pass")


def pytest_configure(config):
    config.stash[FIGURES], config.stash[STARTED] = {}, time.monotonic()


@pytest.fixture
def measured(pytestconfig):
    """measured(name, key=value, ...): note what was measured; several tests may share a name."""

    def note(name, **values):
        _add(pytestconfig.stash[FIGURES], {name: values})

    return note


def pytest_sessionfinish(session):
    """In a worker of pytest-xdist: hand the figures on, as JSON, for numbers of numpy would not get through."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = json.dumps(session.config.stash[FIGURES])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """In the process that started the workers: take them. A worker that crashed has none, and the run has failed."""
    _add(node.config.stash[FIGURES], json.loads(getattr(node, "workeroutput", {}).get("figures", "{}")))


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    path = config.getoption("--figures")
    if path is None or exitstatus != 0:
        return
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cpu_count": os.cpu_count()}
    suite = {
        "tests": len(terminalreporter.getreports("passed")),
        "skipped": len(terminalreporter.getreports("skipped")),
        "processes": config.getoption("numprocesses", None) or 1,
        "seconds": round(time.monotonic() - config.stash[STARTED]),
    }
    found = dict(sorted(config.stash[FIGURES].items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "suite": suite, **found}, indent=2) + "\n", "utf-8")


def _add(figures, more):
    for name, values in more.items():
        figures.setdefault(name, {}).update(values)
