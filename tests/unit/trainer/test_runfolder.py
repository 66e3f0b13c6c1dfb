from __future__ import annotations

import pytest

from pcpo.errors import RunFolderError
from pcpo.trainer.configfile import load_config
from pcpo.trainer.runfolder import check_output, create, default_output


def config(folder, *changes):
    return load_config("pcpo_sd", [f"run.output='{folder}'", *changes])


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    create(folder, config(folder))
    (folder / "checkpoints/000006").mkdir(parents=True)
    (folder / "checkpoints/000006/state.json").write_text("{}")
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
    refused(run, "batch.prompts 6 -> 2; model.lora.rank 16 -> 2; name pcpo_sd -> x ...", *many, resume=True)


def test_resume_goes_forward_only(run):
    assert check_output(config(run, "train.iterations=6"), resume=True) == run
    refused(run, "already done 6 iterations, more than train.iterations 5", "train.iterations=5", resume=True)


def test_the_stored_settings_are_the_resolved_ones(run):
    assert load_config(run / "config.yaml") == config(run)
