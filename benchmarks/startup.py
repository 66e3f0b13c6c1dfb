"""How long until something is on the screen?

    python benchmarks/startup.py                        # writes benchmarks/results/startup.json

Each command runs in a process of its own, in turn with the others; processor seconds are those of that process. The
first visible result of the demo is the line of its evaluation before training.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from timing import RESULTS, header, spread, write

HEAVY = ("torch", "diffusers", "transformers", "pydantic", "numpy")
COMMANDS = {
    "python": ["-c", "pass"],
    "import pcpo": ["-c", "import pcpo"],
    "import typer with its help": ["-c", "import typer.rich_utils"],
    "pcpo --help": ["-m", "pcpo", "--help"],
    "pcpo train --help": ["-m", "pcpo", "train", "--help"],
    "pcpo validate pcpo_sd3": ["-m", "pcpo", "validate", "pcpo_sd3"],
    "import torch": ["-c", "import torch"],
    "import diffusers pipelines": ["-c", "from diffusers import DiffusionPipeline"],
}
TARGETS = {"pcpo --help": 1.0, "import pcpo": 0.5, "pcpo validate pcpo_sd3": 5.0}


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def once(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    wall, cpu = time.perf_counter(), processor_seconds()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - wall, processor_seconds() - cpu


def first_result() -> tuple[float, float]:
    """Seconds from the command to the demo's first evaluation, wall and processor; it is stopped there."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pcpo", "train", "demo", "--output", f"{folder}/run"]
        wall, cpu = time.perf_counter(), processor_seconds()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            seen = next((line for line in process.stdout if "evaluation at 0" in line), None)
            found = time.perf_counter() - wall
            process.terminate()
            process.stdout.read()
        if seen is None:
            raise RuntimeError("the demo ended without an evaluation")
        return found, processor_seconds() - cpu


def loaded_by(module: str) -> list[str]:
    """Which of the heavy packages an import brings."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-demo", action="store_true", help="leave out the demo's first result")
    parser.add_argument("--output", type=Path, default=RESULTS / "startup.json")
    args = parser.parse_args(argv)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for turn in range(-1, args.repeats):
        for name, arguments in COMMANDS.items():
            found = once(arguments)
            if turn >= 0:
                times[name].append(found)
    if not args.no_demo:
        times["first result of pcpo train demo"] = [first_result()]
    results = header("seconds until something is there", targets=TARGETS, repeats=args.repeats)
    results["loaded"] = {module: loaded_by(module) for module in ("pcpo", "pcpo.cli.main")}
    results["commands"] = {
        name: {"wall": spread([wall for wall, _ in found]), "cpu": spread([cpu for _, cpu in found])}
        for name, found in times.items()
    }
    for name, found in results["commands"].items():
        print(f"{name}: {found['wall']['median']:.2f} s, processor {found['cpu']['median']:.2f} s")
    print(f"heavy packages loaded: {results['loaded']}")
    write(args.output, results)


if __name__ == "__main__":
    main()
