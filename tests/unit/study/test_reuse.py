"""Results without their runs: archived, taken over by cells with the same settings, reported on."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from pcpo.cli.main import app
from pcpo.errors import RunFolderError
from pcpo.study.archive import write_archive
from pcpo.study.results import read_results, rounded
from pcpo.study.runner import open_study, run_study

OTHER_NAMES = (
    ("rewards: {colorfulness: }", "rewards: {colour: {reward: colorfulness}}"),
    ("  pcpo:\n", "  ours:\n"),
    ("  native:", "  theirs:"),
    ("checkpoint_every: 1", "checkpoint_every: 2"),
    ("credit_probe: 0", "credit_probe: 0, save: true"),
)


def cell_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_archive_holds_the_figures_and_no_place(finished):
    archive, out = finished / "archive", finished / "out"
    names = ["m--colorfulness--native--0", "m--colorfulness--pcpo--0"]
    assert cell_files(archive) == [*(f"cells/{name}/results.json" for name in names), "study.yaml"]
    for name in names:
        text = (archive / "cells" / name / "results.json").read_text()
        full, kept = json.loads((out / "cells" / name / "results.json").read_text()), json.loads(text)
        assert str(finished) not in text and kept["config"]["run"]["output"] is None
        assert kept["evaluations"] == rounded(full["evaluations"])
        assert len(kept["iterations"]) == len(full["iterations"]) == 2
    assert rounded({"a": [1.23456789, 1234567.0, 3], "b": None}) == {"a": [1.23457, 1234570.0, 3], "b": None}


def without(path, field):
    """Takes a field away from a cell's iterations, as if it had been written before there was one."""
    content = json.loads(path.read_text())
    for row in content["iterations"]:
        del row[field]
    path.write_text(json.dumps(content))


def test_archived_again_a_cell_is_rewritten_only_where_it_says_something_else(finished, tmp_path):
    out, archive = shutil.copytree(finished / "out", tmp_path / "out"), tmp_path / "archive"
    older, other = (f"cells/m--colorfulness--{arm}--0/results.json" for arm in ("native", "pcpo"))
    without(out / older, "clip_fraction_low")
    write_archive(out, archive)
    without(archive / older, "clip_fraction_low")
    before, good = (archive / older).read_text(), (archive / other).read_text()
    (archive / other).write_text(good.replace('"seed":0', '"seed":1'))
    assert write_archive(out, archive) == 2
    assert (archive / older).read_text() == before and (archive / other).read_text() == good


def test_an_archive_is_reported_on(finished, tmp_path):
    shutil.copytree(finished / "archive", tmp_path / "archive")
    shown = CliRunner().invoke(app, ["study", "report", str(tmp_path / "archive")])
    assert shown.exit_code == 0, shown.output
    assert "2 of 2 cells are finished" in (tmp_path / "archive" / "report" / "report.md").read_text()


def test_cells_with_the_same_settings_take_results_over_whatever_their_names(finished, study_file, tmp_path, capsys):
    path, out = study_file(*OTHER_NAMES), tmp_path / "new"
    outcome = run_study(path, out, reuse=[finished / "archive"])
    assert outcome.reused == ["m--colour--theirs--0", "m--colour--ours--0"]
    assert outcome.finished == ["m--colour--theirs--1", "m--colour--ours--1"]
    assert "4 cells, 2 done, 2 of them taken over" in capsys.readouterr().out
    taken = read_results(open_study(out)[1][1])
    assert (taken["reward"], taken["arm"], taken["cell"]) == ("colour", "ours", "m--colour--ours--0")
    assert taken["difference"]["credit.schedule"] == ["native", "uniform"]
    again = run_study(path, out, reuse=[finished / "archive"], quiet=True)
    assert again.reused == again.finished == again.failed == []


@pytest.mark.parametrize(
    "change",
    [("sampler.steps: 3", "sampler.steps: 4"), ("train.iterations: 2", "train.iterations: 3"), ("[0, 1]", "[1]")],
)
def test_cells_with_other_settings_do_not(finished, study_file, tmp_path, change):
    from pcpo.study.plan import load_study, make_cells
    from pcpo.study.reuse import take_over

    cells = make_cells(load_study(study_file(change)), tmp_path / "new")
    assert take_over(cells, [finished / "out"]) == []


def test_results_of_other_settings_in_a_cells_place_are_refused(finished, study_file, tmp_path):
    shutil.copytree(finished / "archive", tmp_path / "old")
    with pytest.raises(RunFolderError, match=r"m--colorfulness--native--0: .*sampler\.steps 3 -> 4"):
        run_study(study_file(("sampler.steps: 3", "sampler.steps: 4")), tmp_path / "old", quiet=True)


@pytest.mark.parametrize("damage", ["", "{}", '{"config": 3}', "[]"])
def test_a_damaged_source_is_named(finished, study_file, tmp_path, damage):
    source = tmp_path / "source"
    shutil.copytree(finished / "archive", source)
    path = source / "cells" / "m--colorfulness--pcpo--0" / "results.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, **json.loads(damage)}) if "config" in damage else damage)
    with pytest.raises(RunFolderError) as error:
        run_study(study_file(), tmp_path / "new", reuse=[source], quiet=True)
    assert str(path) in str(error.value)
    with pytest.raises(RunFolderError, match="holds no cells"):
        run_study(study_file(), tmp_path / "new", reuse=[tmp_path / "nowhere"], quiet=True)


def test_an_archive_beside_the_study_itself_is_refused(finished):
    shown = CliRunner().invoke(app, ["study", "archive", str(finished / "out"), str(finished / "out")])
    assert isinstance(shown.exception, RunFolderError) and "own folder" in str(shown.exception)
