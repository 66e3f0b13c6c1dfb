"""What the benchmarks share: runs in turn, medians with their spread, the machine, and files of results."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pcpo.data.files import write_text_atomic
from pcpo.observe.environment import environment

RESULTS = Path(__file__).parent / "results"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Times = dict[str, dict[str, list[float]]]


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> Times:
    """Wall and processor seconds of every run of every side, in turn: A B C A B C ...

    A slow minute of the machine falls on all sides alike. Work that an accelerator has queued is waited for.
    """
    times: Times = {name: {clock: [] for clock in CLOCKS} for name in sides}
    for turn in range(-warm_up, repeats):
        for name, run in sides.items():
            synchronise()
            began = {clock: read() for clock, read in CLOCKS.items()}
            run()
            synchronise()
            if turn >= 0:
                for clock, read in CLOCKS.items():
                    times[name][clock].append(read() - began[clock])
    return times


def synchronise() -> None:
    """Wait for the accelerator, where there is one and torch is in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(times: Times) -> dict[str, dict[str, dict[str, float]]]:
    """Side -> clock -> median, least and greatest seconds."""
    return {name: {clock: spread(values) for clock, values in clocks.items()} for name, clocks in times.items()}


def ratio(times: Times, above: str, below: str, clock: str) -> dict[str, float]:
    """Median over median of two sides, with the least and the greatest ratio of a turn."""
    a, b = times[above][clock], times[below][clock]
    each = [x / y for x, y in zip(a, b, strict=True)]
    return {"ratio": statistics.median(a) / statistics.median(b), "min": min(each), "max": max(each)}


def header(what: str, **settings: Any) -> dict[str, Any]:
    """The first fields of a file of results: what was measured, how, and on which machine."""
    return {"what": what, **settings, "load_average": os.getloadavg()[0], "environment": environment()}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(results, indent=2) + "\n")


def child(*arguments: str) -> str:
    """Last line that this script prints in a process of its own, called with `arguments`."""
    command = [sys.executable, sys.argv[0], *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def resident_mib(peak: bool = True) -> float:
    """Resident memory of this process in MiB, its peak or now (Linux).

    Not getrusage: its peak counts the parent's memory from before exec.
    """
    field = "VmHWM:" if peak else "VmRSS:"
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition(field)[2].split()[0]) / 1024
