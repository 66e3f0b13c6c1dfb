"""A long run keeps to its memory and its open files, and the log's figures do not pile up in it."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import numpy as np
import pytest

from training import SILENT, SMALL, merge

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident():
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "steps, limit",
    [(500, 8192), pytest.param(10_000, 1024, marks=[pytest.mark.slow, pytest.mark.reliability])],
    ids=["500", "10000"],
)
def test_memory_and_open_files_stay_as_they_are(trainer, measured, steps, limit):
    """Bytes a step by least squares, after a fifth as warm-up; ten optimiser steps to a rollout."""
    it = trainer(
        "sd3", **merge(SMALL, {"sampler": {"steps": 1, "guidance_scale": 1.0}, "train": {"updates": 2, "epochs": 5}})
    )
    marks, memory, files, began = [], [], set(), time.perf_counter()
    iterations = steps // 10
    for iteration in range(iterations):
        it.learner.run(SILENT)
        if iteration >= iterations // 5 and iteration % max(1, iterations // 40) == 0:
            gc.collect()
            marks.append(10 * iteration)
            memory.append(resident())
            files.add(open_files())
    slope = float(np.polyfit(marks, memory, 1)[0])
    measured(
        "long_run",
        optimiser_steps=steps,
        seconds=round(time.perf_counter() - began, 1),
        bytes_per_step=round(slope, 1),
        open_files_added=max(files) - min(files),
    )
    assert slope < limit and len(files) == 1
