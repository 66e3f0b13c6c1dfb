"""Quality at matched reward of a whole study: measured once per cell, paired by seed, shown without weights."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from pcpo.cli.main import app
from pcpo.errors import ConfigError, RunFolderError
from pcpo.evaluation.compare import Comparer
from pcpo.study.archive import write_archive
from pcpo.study.matched import Options, match_study, matched_target
from pcpo.study.matched_table import against
from pcpo.study.report import write_study_report
from pcpo.study.runner import run_study

# More at every call, so that every run rises.
RISING = """
calls = [0]

def rising(images, prompts, metadata):
    calls[0] += 1
    return images.double().mean((1, 2, 3)) + 1000.0 * calls[0]
"""


@pytest.mark.parametrize(("share", "target"), [(1.0, 2.5), (0.5, 4.0), (0.51, 2.5)])
def test_the_target_is_the_highest_that_the_share_of_every_arm_reaches(share, target):
    assert matched_target({"a": [[1.0, 3.0, 2.0], [4.0]], "b": [[2.5, 0.0], [5.0, 1.0]]}, share) == target


@pytest.fixture
def run(study_file, tmp_path):
    """run(...): a finished study whose rewards rise, with texts of its file replaced."""

    def make(*changes):
        (tmp_path / "own.py").write_text(RISING)
        reward = ("rewards: {colorfulness: }", f"rewards: {{own: {tmp_path / 'own.py'}:rising}}")
        outcome = run_study(study_file(reward, *changes), tmp_path / "out", quiet=True)
        assert not outcome.failed
        return tmp_path / "out"

    return make


def test_a_study_is_measured_once_and_reported_without_weights(run, tmp_path, monkeypatch):
    out = run(("credit_probe: 0", "credit_probe: 0, save: true"))
    options = ["--pictures", "4", "--quiet", "--held-out", "animals"]
    shown = CliRunner().invoke(app, ["study", "matched", str(out), *options])
    assert shown.exit_code == 0, shown.output
    found = json.loads((out / "report" / "matched.json").read_text())["m--own"]
    assert found["target"] > found["start"] and found["seeds"] == [0, 1]
    assert set(found["figures"]) == {"training", "held_out"}
    assert found["sampling"]["training"]["count"] == 2 and len(found["cells"]) == 4
    rows = {(row["arm"], row["seed"]): row["training"] for row in found["cells"].values()}
    name = "emoji_clip: diversity within prompts"
    expected = [rows["pcpo", seed][name] - rows["native", seed][name] for seed in (0, 1)]
    difference = found["figures"]["training"][name]["pcpo"]["difference"]
    assert difference["n"] == 2 and difference["mean"] == pytest.approx(sum(expected) / 2)
    assert all(
        row["iteration"] > 0 and row["training"]["evaluation reward"] >= found["target"]
        for row in found["cells"].values()
    )

    with monkeypatch.context() as patch:  # what was measured is not measured again
        patch.setattr(Comparer, "evaluate_run", None)
        match_study(out, Options(4, "animals"), quiet=True)
    text = write_study_report(out).read_text()
    assert "Quality at matched reward: every run by its first saved weights" in text
    assert (out / "report" / "m--own--matched.png").is_file()
    back = against(found, "pcpo")["figures"]["training"][name]
    assert back["pcpo"]["difference"] is None and back["native"]["difference"]["mean"] == -difference["mean"]
    text = write_study_report(out, "pcpo").read_text()
    assert "| set | figure | pcpo | native, difference |" in text

    kept = tmp_path / "archive" / "report" / "matched.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"other--own": found}))
    write_archive(out, tmp_path / "archive")
    assert set(json.loads(kept.read_text())) == {"other--own", "m--own"}
    assert "Quality at matched reward: every run" in write_study_report(tmp_path / "archive").read_text()


def test_damaged_figures_and_a_wrong_share_are_refused(finished, tmp_path):
    shutil.copytree(finished / "archive", tmp_path / "archive")
    (tmp_path / "archive" / "report").mkdir()
    (tmp_path / "archive" / "report" / "matched.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"matched\.json"):
        write_study_report(tmp_path / "archive")
    with pytest.raises(ConfigError, match="share"):
        match_study(finished / "out", Options(share=0), quiet=True)
