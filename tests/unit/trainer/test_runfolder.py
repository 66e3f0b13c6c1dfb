from __future__ import annotations

import os

import pytest

from pcpo.errors import ConfigError, RunFolderError
from pcpo.trainer import checkpoint
from pcpo.trainer.checkpoint import Snapshot
from pcpo.trainer.configfile import load_config
from pcpo.trainer.lock import RunLock
from pcpo.trainer.random_state import RandomState
from pcpo.trainer.runfolder import check_output, check_space, claim, default_output


def config(folder, *changes):
    return load_config("pcpo_sd", [f"run.output='{folder}'", *changes])


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    claim(folder, config(folder), resume=False)
    settings = config(folder).model_dump(mode="json")
    checkpoint.save(folder / "checkpoints", Snapshot(6, {}, {}, RandomState.capture(), settings))
    return folder


def refused(folder, words, *changes, resume=False):
    before = snapshot(folder.parent)
    with pytest.raises(RunFolderError) as caught:
        check_output(config(folder, *changes), resume)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert snapshot(folder.parent) == before


def test_a_new_or_empty_folder_is_taken_and_not_made_yet(tmp_path):
    new = tmp_path / "a/b"
    assert check_output(config(new), resume=False) == new and not new.parent.exists()
    new.mkdir(parents=True)
    assert check_output(config(new), resume=False) == new


def test_the_usual_folder_carries_name_and_seed():
    assert str(default_output(load_config("ddpo", ["run.seed=3"]))) == "runs/ddpo-3"


def test_folders_that_are_not_this_runs(tmp_path, run):
    refused(run, "already holds a run -> continue it with --resume")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years")
    refused(foreign, "is not empty and not a run")
    refused(foreign, "holds no run to resume", resume=True)
    refused(tmp_path / "absent", "holds no run to resume", resume=True)
    refused(foreign / "thesis.tex", "is a file")
    refused(foreign / "thesis.tex/below", "thesis.tex: is a file")
    refused(tmp_path / ("x" * 300), "cannot be used")


def test_resume_names_what_changed(run):
    assert check_output(config(run, "train.iterations=90", "evaluation.every=3", "run.threads=1"), resume=True) == run
    refused(run, "optim.learning_rate 0.003 -> 0.001", "optim.learning_rate=1e-3", resume=True)
    refused(run, "run.seed 0 -> 5", "run.seed=5", resume=True)
    refused(run, "run.precision fp32 -> bf16", "run.precision=bf16", resume=True)
    refused(run, "prompts common50 -> ['a']", "prompts=[a]", resume=True)
    many = ["name=x", "batch.prompts=2", "model.lora.rank=2", "sampler.steps=3"]
    refused(run, "batch.prompts 6 -> 2; model.lora.rank 16 -> 2; name pcpo_sd -> x; sampler.st", *many, resume=True)


def test_changes_are_allowed_by_name(run):
    changed = config(run, "optim.learning_rate=1e-3", "optim.weight_decay=0", "name=x")
    assert check_output(changed, True, ["optim", "name"]) == run
    assert check_output(changed, True, ["optim.learning_rate", "optim.weight_decay", "name"]) == run
    with pytest.raises(RunFolderError, match=r"other settings: name pcpo_sd -> x -> .*--allow-change KEY"):
        check_output(changed, True, ["optim"])
    with pytest.raises(ConfigError, match=r"optim.learning_rat.*did you mean 'optim.learning_rate'"):
        check_output(changed, True, ["optim.learning_rat"])


def test_what_the_checkpoint_was_made_with_counts_not_an_edited_file(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0", "seed: 7"))
    refused(run, "run.seed 0 -> 7", "run.seed=7", resume=True)
    assert check_output(config(run), resume=True) == run


def test_a_folder_in_use_is_refused_and_says_by_whom(run):
    with RunLock(run):
        for resume in (False, True):
            with pytest.raises(RunFolderError, match=r"is in use by process \d+ on '.*' since \d{4}-"):
                check_output(config(run), resume)
        with pytest.raises(RunFolderError, match="in use"), RunLock(run):
            pass
    assert check_output(config(run), resume=True) == run and not (run / "run.lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    (tmp_path / "run.lock").write_text('{"pid": 1, "host": "elsewhere", "start": 1}')
    assert check_output(config(tmp_path), resume=False) == tmp_path
    with RunLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / "run.lock").read_text()


def test_two_new_runs_cannot_both_have_a_folder(tmp_path):
    claim(tmp_path, config(tmp_path), resume=False)
    with pytest.raises(RunFolderError, match="already holds a run"):
        claim(tmp_path, config(tmp_path), resume=False)


def test_space_is_asked_for_before_it_is_needed(tmp_path):
    check_space(tmp_path / "new/run", 1000)
    with pytest.raises(RunFolderError, match=r"MB free, and the run's .* need 1,000,000,000,000 MB -> free space"):
        check_space(tmp_path / "new/run", 10**18)


def test_resume_goes_forward_only(run):
    assert check_output(config(run, "train.iterations=6"), resume=True) == run
    refused(run, "already done 6 iterations, more than train.iterations 5", "train.iterations=5", resume=True)


def test_the_stored_settings_are_the_resolved_ones(run):
    assert load_config(run / "config.yaml") == config(run)
