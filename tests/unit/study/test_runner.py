"""Cells are ordinary runs: started, resumed, skipped, failed and retried, by one runner or by several."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from pcpo.errors import RunFolderError
from pcpo.evaluation.iterations import load_iteration
from pcpo.models.loading import load_adapter
from pcpo.observe.events import read_events
from pcpo.study import claims
from pcpo.study.plan import load_study, make_cells
from pcpo.study.runner import open_study, run_study, state
from pcpo.study.status import describe
from pcpo.trainer.evaluate import Evaluator
from pcpo.trainer.loop import PCPOTrainer
from training import same

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
    outcome = run_study(path, out, only=["arm=pcpo", "seed=1"])
    assert outcome.finished == ["m--colorfulness--pcpo--1"] and "1 of 1 cells are done" in capsys.readouterr().out
    outcome = run_study(path, out)
    said = capsys.readouterr().out
    assert "pcpo: credit.schedule native -> uniform, objective.name ppo_clip -> matching" in said
    assert len(outcome.finished) == 3 and "4 of 4 cells are done" in said

    cells = open_study(out)[1]
    alone = cells[3].config.model_dump(mode="json")
    alone["run"]["output"] = str(tmp_path / "alone")
    PCPOTrainer(config=alone, quiet=True).train()
    lora = "lora/pytorch_lora_weights.safetensors"
    assert same(load_file(cells[3].folder / lora), load_file(tmp_path / "alone" / lora))

    results = json.loads((cells[3].folder / "results.json").read_text())
    assert results["complete"] and results["difference"]["credit.schedule"] == ["native", "uniform"]
    assert [e["samples"] for e in results["evaluations"]] == [0, 4, 8] and results["environment"]["torch"]
    times = [e["seconds"] for e in results["evaluations"]]
    assert 0 == times[0] < times[1] < times[2] == results["seconds"]
    start = read_events(cells[3].folder / "events.jsonl").evaluations[0]
    one, other = start.held_out_per_prompt["jpeg_compressibility"]
    assert results["evaluations"][0]["held_out_std"]["jpeg_compressibility"] == pytest.approx(abs(one - other) / 2)
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
    with pytest.raises(RunFolderError, match=r"cell m--colorfulness--native--0: .*sampler\.steps 3 -> 4"):
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


@pytest.mark.slow
def test_runners_share_a_folder_and_a_killed_ones_cell_is_resumed(study_file, tmp_path, own, capsys):
    """This process and two others, one of which is killed in the middle of a cell."""
    rewards, longer = ("{colorfulness: }", f"{{own: {own}:slow}}"), ("train.iterations: 2", "train.iterations: 4")
    path, out = study_file(rewards, longer), tmp_path / "out"
    victim, other = (start(path, out, "--shard-name", name) for name in ("victim", "other"))
    cells = make_cells(load_study(path), out)
    hit = wait_for_checkpoint(cells, out, victim.pid)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()

    here = run_study(path, out, shard="here")
    said = capsys.readouterr().out
    there, error = other.communicate(timeout=120)
    assert other.returncode == 0, error
    assert here.failed == [] and [state(cell, out) for cell in cells] == ["done"] * 4
    assert all((said + there).count(f"{cell.name}: reward") == 1 for cell in cells)
    for cell in cells:
        events = [json.loads(line) for line in (cell.folder / "events.jsonl").read_text().splitlines()]
        assert [e["type"] for e in events].count("run_start") == (2 if cell.name == hit else 1)
        assert [e.iteration for e in read_events(cell.folder / "events.jsonl").iterations] == [1, 2, 3, 4]


def wait_for_checkpoint(cells, out, pid):
    """The cell of a process, once it has a checkpoint and is not done."""
    deadline = time.time() + 90
    while time.time() < deadline:
        for cell in cells:
            owner = claims.owner(out / "claims", cell.name)
            if owner and owner["pid"] == pid and list(cell.folder.glob("checkpoints/*/state.json")):
                return cell.name
        time.sleep(0.02)
    raise TimeoutError("no checkpoint")


def test_a_cell_that_another_runner_took_over_is_left(study_file, tmp_path, own, monkeypatch, capsys):
    """As after a long suspension: the owner finds a newer claim, stops, and writes neither results nor a failure."""
    monkeypatch.setattr(claims, "take", functools.partial(claims.take, every=0.02))
    path, out = study_file(("seeds: [0, 1]", "seeds: [0]"), ("  pcpo:\n", "")), tmp_path / "out"
    (cell,) = make_cells(load_study(path), out)
    newer = out / "claims" / f"{cell.name}.1.json"
    evaluate = Evaluator.run

    def suspended(*arguments):
        mine = claims.read(newer.with_name(f"{cell.name}.0.json"))
        newer.write_text(json.dumps({**mine, "machine": "elsewhere"}))
        time.sleep(0.5)
        return evaluate(*arguments)

    monkeypatch.setattr(Evaluator, "run", suspended)
    outcome = run_study(path, out)
    assert outcome.finished == outcome.failed == [] and outcome.elsewhere == [cell.name]
    assert "another runner took over" in capsys.readouterr().out
    assert claims.read(newer)["machine"] == "elsewhere"
    assert not (cell.folder / "results.json").exists() and not (out / "failures").exists()


def test_the_weights_of_every_evaluation_are_kept_where_asked_for(trainer, folders):
    job = trainer("sd", train={"iterations": 2}, evaluation={"every": 1, "save": True})
    job.train()
    name = "lora/pytorch_lora_weights.safetensors"
    kept = [load_file(job.folder / "evaluations" / f"{n:06d}" / name) for n in range(3)]
    assert same(kept[2], load_file(job.folder / name)) and not same(kept[1], kept[2])
    assert all(not tensor.any() for key, tensor in kept[0].items() if "lora_B" in key or ".up." in key)
    adapter = load_adapter(str(folders["sd"]))
    load_iteration(adapter, job.folder, 1, job.config.model)
    loaded = [p for key, p in adapter.unwrapped.named_parameters() if "lora_B" in key]
    assert {round(float(p.detach().double().square().sum()), 12) for p in loaded} == {
        round(float(t.double().square().sum()), 12) for key, t in kept[1].items() if "lora_B" in key or ".up." in key
    }


KILLS = """
import os, signal

def deadly(images, prompts, metadata):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_cell_that_kills_its_process_is_given_up(study_file, tmp_path):
    (tmp_path / "kills.py").write_text(KILLS)
    rewards = f"{{deadly: {tmp_path / 'kills.py'}:deadly, colorfulness: }}"
    path = study_file(("{colorfulness: }", rewards), ("seeds: [0, 1]", "seeds: [0]"), ("  pcpo:\n", ""))
    out = tmp_path / "out"

    def ends(*arguments):
        with start(path, out, "--quiet", *arguments) as process:
            process.communicate(timeout=120)
        return process.returncode

    assert [ends() for _ in range(3)] == [-signal.SIGKILL] * 3
    outcome = run_study(path, out, quiet=True)
    assert outcome.finished == ["m--colorfulness--native--0"] and outcome.failed == ["m--deadly--native--0"]
    assert "3 processes died on it" in describe(out) and "1 done, 1 failed" in describe(out)
    assert ends("--retry-failed") == -signal.SIGKILL


def die(folder, cell, progress, released=False):
    """A claim of a process that is no more."""
    claim = claims.take(folder, cell, "s", progress=progress)
    claim.path.write_text(json.dumps({**claim.record, "process_started": 0.0, "released": released}))
    return claim


def test_a_cell_whose_processes_died_is_recorded_as_failed(study_file, tmp_path):
    path, out = study_file(("seeds: [0, 1]", "seeds: [0]")), tmp_path / "out"
    for _ in range(3):
        die(out / "claims", "m--colorfulness--native--0", 0)
    outcome = run_study(path, out, quiet=True)
    assert outcome.failed == ["m--colorfulness--native--0"] and outcome.finished == ["m--colorfulness--pcpo--0"]
    assert "3 processes died on it, all without getting further than iteration 0" in describe(out)
    assert run_study(path, out, quiet=True, retry_failed=True).finished == ["m--colorfulness--native--0"]


def test_deaths_count_only_where_nothing_was_gained(tmp_path):
    expected = ((0, False, 0), (0, False, 1), (5, False, 0), (5, True, 1), (5, False, 0), (5, False, 1), (6, False, 0))
    for progress, released, deaths in expected:
        assert die(tmp_path, "c", progress, released).deaths == deaths
