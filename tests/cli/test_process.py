"""The installed command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

PCPO = Path(sys.executable).with_name("pcpo")
HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL")


def call(*command, cwd=None):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_help_answers_within_a_second():
    times = []
    for _ in range(3):
        began = time.perf_counter()
        code, out, err = call(PCPO, "--help")
        times.append(time.perf_counter() - began)
        assert (code, err) == (0, "") and "train" in out
    assert min(times) < 1


def test_help_imports_nothing_heavy():
    program = "import sys; sys.argv = ['pcpo', 'train', '--help']; from pcpo.cli.main import main\n"
    program += f"try: main()\nexcept SystemExit: print('loaded', [m for m in {HEAVY} if m in sys.modules])"
    code, out, err = call(sys.executable, "-c", program)
    assert (code, err) == (0, "") and out.splitlines()[-1] == "loaded []"


def test_training_talks_on_stdout_and_keeps_stderr_for_errors(folders, tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        f"preset: pcpo_sd3\nname: tiny\nmodel: {{path: {folders['sd3']}}}\nprompts: [a]\nsampler: {{steps: 3}}\n"
        "batch: {prompts: 1, group_size: 2}\ntrain: {iterations: 1}\nevaluation: {num_prompts: 1}\n"
    )
    command = (sys.executable, "-m", "pcpo", "train", "tiny.yaml", "-o", "run")
    code, out, err = call(*command, cwd=tmp_path)
    assert (code, err) == (0, "") and "iter 1/1" in out and "\x1b" not in out
    assert (tmp_path / "run/report.html").is_file() and (tmp_path / "run/lora").is_dir()
    code, out, err = call(*command, cwd=tmp_path)
    assert code == 6 and out == "" and err.startswith("pcpo: run: already holds a run") and err.count("\n") == 1


def test_a_closed_pipe_is_no_traceback():
    done = subprocess.run(
        ["bash", "-c", f"'{PCPO}' presets pcpo_sd | head -n 1"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("name: pcpo_sd") and "Traceback" not in done.stderr
