"""Cells are ordinary runs: started, resumed, skipped, failed and retried, by one runner or by several."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pcpo.errors import RunFolderError
from pcpo.observe.events import read_events
from pcpo.study.plan import load_study, make_cells
from pcpo.study.runner import open_study, run_study, state
from pcpo.study.status import describe
from pcpo.trainer.loop import PCPOTrainer

OWN = """
import os, time
from pathlib import Path

def slow(images, prompts, metadata):
    with open(os.environ["CALLS"], "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.1)
    return images.double().mean((1, 2, 3))

def broken(images, prompts, metadata):
    if Path(os.environ["CALLS"]).exists():
        return images.double().mean((1, 2, 3))
    raise KeyError("two\\nlines")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "own.py"


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def start(path, output, *arguments):
    command = [sys.executable, "-m", "pcpo", "study", "run", str(path), "-o", str(output), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_study_is_run_skipped_and_extended(study_file, tmp_path, capsys):
    path, out = study_file(), tmp_path / "out"
    outcome = run_study(path, out)
    said = capsys.readouterr().out
    assert "pcpo: credit.schedule native -> uniform, objective.name ppo_clip -> matching" in said
    assert len(outcome.finished) == 4 and "4 of 4 cells are done" in said

    study, cells = open_study(out)
    same = PCPOTrainer(config={**cells[3].config.model_dump(), "run": {"output": str(tmp_path / "alone")}}, quiet=True)
    assert cells[3].seed == 1 and same.config.run.seed == 0
    alone = cells[3].config.model_dump(mode="json")
    alone["run"]["output"] = str(tmp_path / "alone")
    PCPOTrainer(config=alone, quiet=True).train()
    lora = "lora/pytorch_lora_weights.safetensors"
    assert (cells[3].folder / lora).read_bytes() == (tmp_path / "alone" / lora).read_bytes()

    results = json.loads((cells[3].folder / "results.json").read_text())
    assert results["complete"] and results["difference"]["credit.schedule"] == ["native", "uniform"]
    assert [e["samples"] for e in results["evaluations"]] == [0, 4, 8] and results["environment"]["torch"]
    times = [e["seconds"] for e in results["evaluations"]]
    assert 0 == times[0] < times[1] < times[2] == results["seconds"]
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3
    assert [float(r["reward_mean"]) for r in rows[-3:]] == [e["reward_mean"] for e in results["evaluations"]]

    before = tree(out / "cells")
    assert run_study(path, out, quiet=True).finished == []
    assert tree(out / "cells") == before
    longer = study_file(("seeds: [0, 1]", "seeds: [0, 1, 2]"), ("train.iterations: 2", "train.iterations: 3"))
    assert len(run_study(longer, out, quiet=True).finished) == 6
    log = read_events(cells[0].folder / "events.jsonl")
    assert [event.iteration for event in log.iterations] == [1, 2, 3]
    with pytest.raises(RunFolderError, match="cell m--colorfulness--native--0: .*sampler.steps 3 -> 4"):
        run_study(study_file(("sampler.steps: 3", "sampler.steps: 4")), out)


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(study_file, tmp_path, own, capsys):
    rewards = ("{colorfulness: }", f"{{bad: {own}:broken, colorfulness: }}")
    path, out = study_file(rewards, ("seeds: [0, 1]", "seeds: [0]")), tmp_path / "out"
    outcome = run_study(path, out, quiet=True)
    assert len(outcome.failed) == len(outcome.finished) == 2
    assert "failed: m--bad--native--0: RewardError" in capsys.readouterr().out
    failure = json.loads((out / "failures" / "m--bad--native--0.json").read_text())
    assert failure["kind"] == "RewardError" and "KeyError" in failure["error"]
    assert "2 done, 2 failed" in describe(out) and "failed   m--bad--pcpo--0: RewardError" in describe(out)

    assert run_study(path, out, quiet=True).failed == []
    again = run_study(path, out, quiet=True, retry_failed=True)
    assert len(again.failed) == 2 and again.finished == []
    (tmp_path / "calls").touch()
    assert len(run_study(path, out, quiet=True, retry_failed=True).finished) == 2
    assert not list((out / "failures").iterdir())


def test_runners_share_a_folder_and_a_killed_ones_cell_is_resumed(study_file, tmp_path, own):
    """Two processes and a third one that is killed in the middle of a cell: every iteration is made exactly once."""
    rewards, longer = ("{colorfulness: }", f"{{own: {own}:slow}}"), ("train.iterations: 2", "train.iterations: 4")
    path, out = study_file(rewards, longer), tmp_path / "out"
    victim = start(path, out, "--quiet")
    checkpoint = out / "cells" / "m--own--native--0" / "checkpoints"
    deadline = time.time() + 60
    while not list(checkpoint.glob("*/state.json")) and time.time() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()

    runners = [start(path, out, "--shard-name", name) for name in ("one", "two")]
    ended = [runner.communicate(timeout=120) for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], ended
    cells = make_cells(load_study(path), out)
    assert [state(cell, out) for cell in cells] == ["done"] * 4
    lines = "".join(stdout for stdout, _ in ended)
    assert all(lines.count(f"{cell.name}: reward") == 1 for cell in cells)
    assert all(f"{cell.name}: reward" in ended[0][0] or f"{cell.name}: reward" in ended[1][0] for cell in cells)
    for cell in cells:
        events = [json.loads(line) for line in (cell.folder / "events.jsonl").read_text().splitlines()]
        assert [e["type"] for e in events].count("run_start") == (2 if cell is cells[0] else 1)
        assert [e.iteration for e in read_events(cell.folder / "events.jsonl").iterations] == [1, 2, 3, 4]
