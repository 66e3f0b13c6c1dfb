"""From results to figures: known curves give known times, nothing is made of a single seed."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pcpo.cli.main import app
from pcpo.errors import ConfigError, RunFolderError
from pcpo.study.analysis import analyse
from pcpo.study.figures import draw_forest, draw_overall, forest
from pcpo.study.plan import Study, load_study
from pcpo.study.report import write_study_report
from pcpo.study.runner import run_study
from pcpo.study.tables import text_of

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "study.yaml"


def study(**changes):
    data = {"name": "s", "models": {"m": None}, "rewards": {"colorfulness": None}, "seeds": list(range(5))}
    targets = {"colorfulness": {"absolute": [13.0, 9.0, 99.0], "rise": [0.2]}}
    return Study.model_validate({"arms": {"base": None, "fast": None}, "targets": targets, **data, **changes})


def cell(arm, seed, slope, complete=True, length=10, pace=2.0, start=10.0):
    """Rewards start + slope * iteration, evaluated every 5 iterations; 4 pictures and `pace` seconds an iteration."""
    places = range(0, length + 1, 5)
    evaluations = [
        {"iteration": n, "samples": 4 * n, "seconds": pace * n, "reward_mean": start + slope * n, "reward_std": 1.0}
        for n in places
    ]
    spent = {"rollout": 0.25 * pace, "update": 0.75 * pace, "probe": 7.0, "total": 7.0 + pace}
    row = {"clip_fraction": 0.25, "approx_kl": None, "grad_norm": 2.0, "seconds": spent}
    rows = [{**row, "ratio_error": n * 1e-3} for n in range(length)]
    return {
        "model": "m",
        "reward": "colorfulness",
        "arm": arm,
        "seed": seed,
        "complete": complete,
        "seconds": pace * length,
        "difference": {},
        "evaluations": evaluations,
        "iterations": rows,
    }


def group(results, **changes):
    (found,) = analyse(study(**changes), results)["groups"]
    return found


def test_known_curves_give_known_times_and_ratios():
    slopes = [0.5, 0.6, 0.7, 0.8, 1.0]
    results = [cell("base", s, slopes[s]) for s in range(5)]
    results += [cell("fast", s, 2 * slopes[s], pace=3.0) for s in range(5)]
    found = group(results)
    assert [t["label"] for t in found["targets"]] == ["+20 %", "13", "99"] and found["targets_below_start"] == ["9"]
    twelve, _thirteen, never = found["targets"]
    for s in range(5):
        assert twelve["arms"]["base"]["times"]["iterations"][s] == pytest.approx(2 / slopes[s])
        assert twelve["arms"]["fast"]["times"]["samples"][s] == pytest.approx(4 / slopes[s])
    against = twelve["against_baseline"]["fast"]
    assert against["iterations"]["ratio"]["mean"] == pytest.approx(0.5)
    # paired by seed, so the spread over seeds does not blur it
    assert against["iterations"]["ratio"]["low"] == pytest.approx(0.5)
    assert against["seconds"]["ratio"]["mean"] == pytest.approx(0.75)
    assert never["arms"]["fast"]["reached"] == 0 and never["against_baseline"]["fast"]["iterations"]["both"] == 0
    assert found["arms"]["fast"]["end_against_baseline"]["mean"] == pytest.approx(10 * 0.72)
    assert [row["iteration"] for row in found["arms"]["base"]["curve"]] == [0, 5, 10]
    assert found["arms"]["base"]["also"]["clip_fraction"]["mean"] == 0.25
    assert "approx_kl" not in found["arms"]["base"]["also"]


def test_targets_rise_from_the_baselines_start_and_lie_above_every_arms():
    results = [cell("base", s, 1.0) for s in range(2)] + [cell("fast", s, 1.0, start=11.5) for s in range(2)]
    found = group(results)
    assert found["start"] == 10.0 and found["targets"][0]["value"] == pytest.approx(12.0)
    found = group([*results[:2], *(cell("fast", s, 1.0, start=12.5) for s in range(2))])
    assert [t["label"] for t in found["targets"]] == ["13", "99"]
    assert found["targets_below_start"] == ["9", "+20 %"]


def test_the_largest_ratio_error_is_shown():
    found = group([cell(arm, seed, 1.0) for arm in ("base", "fast") for seed in range(3)])
    assert found["arms"]["fast"]["also"]["largest_ratio_error_before_the_first_update"]["mean"] == pytest.approx(9e-3)


def test_times_are_cut_where_the_first_failing_run_ended():
    """Seed 0 of the baseline never reaches 13 and ends after 20 s, so a time of 36 s counts as 20."""
    results = [cell("base", s, slope) for s, slope in enumerate((0.1, 1.0, 1.0))]
    results += [cell("fast", s, 0.5, pace=6.0) for s in range(3)]
    thirteen = next(t for t in group(results)["targets"] if t["label"] == "13")
    assert thirteen["restricted_to"] == {"iterations": 10.0, "samples": 40.0, "seconds": 20.0}
    base, fast = thirteen["arms"]["base"], thirteen["arms"]["fast"]
    assert (base["reached"], fast["reached"]) == (2, 3)
    assert base["restricted_mean"]["iterations"]["mean"] == pytest.approx((10 + 3 + 3) / 3)
    assert fast["times"]["seconds"][0] == pytest.approx(36.0) and fast["restricted_mean"]["seconds"]["mean"] == 20.0
    against = thirteen["against_baseline"]["fast"]["iterations"]
    assert (against["both"], against["only_arm"]) == (2, 1) and against["ratio"]["mean"] == pytest.approx(2.0)


def test_a_pause_is_not_the_runs():
    results = [cell(arm, seed, 1.0, pace=3.0) for arm in ("base", "fast") for seed in range(3)]
    results[0]["iterations"][4]["seconds"] = {"rollout": 4000.0, "update": 2.0, "total": 4002.0}
    results[0]["seconds"] += 4000.0
    for evaluation in results[0]["evaluations"][1:]:
        evaluation["seconds"] += 4000.0
    found = group(results)
    assert found["arms"]["base"]["also"]["seconds_per_iteration"]["mean"] == pytest.approx(3.0)
    against = found["targets"][0]["against_baseline"]["fast"]
    assert against["seconds"]["ratio"]["high"] == pytest.approx(1.0)


def test_unfinished_cells_are_left_out_and_longer_runs_are_cut():
    results = [cell("base", s, 1.0) for s in range(3)] + [cell("fast", s, 2.0, length=20) for s in range(3)]
    found = group([*results, cell("fast", 3, 50.0, complete=False)])
    assert found["horizon"] == 10 and found["arms"]["fast"]["seeds"] == [0, 1, 2]
    assert found["arms"]["fast"]["end"]["mean"] == 30.0


def test_without_targets_shares_of_the_baselines_rise():
    found = group([cell(arm, s, slope) for s in range(3) for arm, slope in (("base", 1.0), ("fast", 2.0))], targets={})
    assert [(t["label"][:4], t["value"]) for t in found["targets"]] == [("50 %", 15.0), ("80 %", 18.0)]
    assert group([cell(arm, s, -1.0) for s in range(3) for arm in ("base", "fast")], targets={})["targets"] == []


def test_a_single_seed_is_never_a_result():
    found = group([cell("base", 0, 1.0), cell("fast", 0, 2.0)])
    assert found["arms"]["fast"]["end"]["mean"] is None and found["targets"][0]["arms"]["fast"]["reached"] == 1
    assert text_of(found["arms"]["fast"]["end"]) == "too few seeds (1)"
    two = group([cell(arm, s, 1.0 + s) for s in range(2) for arm in ("base", "fast")])
    assert text_of(two["arms"]["fast"]["end"]) == "25 (too few seeds: 2)"
    three = group([cell(arm, s, 1.0 + s) for s in range(3) for arm in ("base", "fast")])
    assert text_of(three["arms"]["fast"]["end"]) == "30 [20, 40]"


def test_a_study_of_two_rewards_has_one_ratio_and_a_figure_of_it(tmp_path):
    pytest.importorskip("matplotlib")
    # seed 0 of the baseline never reaches 13 with the second reward: the figure says so, and nothing is left out
    results = [cell(arm, s, slope) for s in range(3) for arm, slope in (("base", 1.0), ("fast", 2.0))]
    other = [cell("base", s, slope) for s, slope in enumerate((0.1, 1.0, 1.0))]
    other += [cell("fast", s, 2.0) for s in range(3)]
    results += [{**row, "reward": "jpeg"} for row in other]
    targets = {"colorfulness": {"absolute": [13.0]}, "jpeg": {"absolute": [13.0]}}
    found = analyse(study(rewards={"colorfulness": None, "jpeg": None}, targets=targets), results)
    (row,) = found["overall"]
    assert (row["reached"], row["baseline"], row["runs"]) == (6, 5, 6)
    assert row["ratio"]["high"] == pytest.approx(0.5) and row["ratio"]["low"] == pytest.approx((0.5 * 0.15) ** 0.5)
    for draw, path in (
        (lambda path: draw_overall(found["groups"], found["overall"], path), tmp_path / "overall.png"),
        (lambda path: draw_forest(found["groups"], path), tmp_path / "forest.png"),
    ):
        assert draw(path) == path
        with Image.open(path) as picture:
            assert picture.width > 600
    assert draw_overall(found["groups"], [], tmp_path / "none.png") is None


def test_an_arm_that_is_one_models_baseline_is_drawn_beside_anothers(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(forest, "save", lambda figure, path: drawn.append(figure))
    groups = analyse(
        study(models={"m": None, "n": {"arms": ["fast"]}}, baseline="base"),
        [cell(arm, s, 1.0) for arm in ("base", "fast") for s in range(3)]
        + [{**cell("fast", s, 1.0), "model": "n"} for s in range(3)],
    )["groups"]
    assert [group["baseline"] for group in groups] == ["base", "fast"]
    draw_forest(groups, tmp_path / "forest.png")
    (figure,) = drawn
    assert "fast" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_the_example_runs_and_reports(folders, tmp_path, monkeypatch):
    """The shipped file with tiny pipelines in the place of the embedded ones, 2 seeds and 2 iterations."""
    pytest.importorskip("matplotlib")
    load_study(EXAMPLE)
    data = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    data["models"] = {"emoji-sd": {"preset": "pcpo_sd", "path": str(folders["sd"])}}
    small = ["train.iterations=2", "batch.prompts=2", "batch.group_size=2", "sampler.steps=3", "evaluation.every=1"]
    data["base"]["set"] += [*small, "evaluation.credit_probe=0", "evaluation.num_prompts=2", "run.device=cpu"]
    data["seeds"] = [0, 1]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(data))
    out = tmp_path / "out"
    with pytest.raises(RunFolderError, match="holds no study"):
        write_study_report(out)
    assert len(run_study(tmp_path / "study.yaml", out, quiet=True).finished) == 4

    told = CliRunner().invoke(app, ["study", "status", str(out)])
    assert "4 cells: 4 done" in told.stdout and "pcpo    2/2 seeds" in told.stdout
    (out / "results.csv").unlink()
    (out / "report").mkdir()
    stale, other = (out / "report" / name for name in ("gone--x--curves.png", "notes--curves.txt"))
    stale.touch(), other.touch()
    told = CliRunner().invoke(app, ["study", "report", str(out)])
    assert told.exit_code == 0 and told.stdout.strip() == str(out / "report" / "report.md")
    assert other.exists() and not stale.exists(), "only figures that an earlier report drew are removed"
    text = (out / "report" / "report.md").read_text("utf-8")
    assert "4 of 4 cells are finished." in text and "too few seeds: 2" in text
    assert "[" not in re.sub(r"!\[[^]]*\]", "", text)  # no interval anywhere
    numbers = json.loads((out / "report" / "report.json").read_text("utf-8"))
    assert numbers["groups"][0]["arms"]["native"]["seeds"] == [0, 1]
    with Image.open(out / "report" / "emoji-sd--colorfulness--curves.png") as picture:
        assert picture.width > 600
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12

    told = CliRunner().invoke(app, ["study", "report", str(out), "--baseline", "pcpo"])
    assert told.exit_code == 0 and told.stdout.strip() == str(out / "report-pcpo" / "report.md")
    swapped = json.loads((out / "report-pcpo" / "report.json").read_text("utf-8"))["groups"][0]
    assert swapped["baseline"] == "pcpo" and swapped["arms"]["pcpo"]["difference"] == {}
    there, back = (found["arms"][arm] for found, arm in ((numbers["groups"][0], "pcpo"), (swapped, "native")))
    assert back["end_against_baseline"]["mean"] == pytest.approx(-there["end_against_baseline"]["mean"])
    assert back["difference"] == {key: [new, old] for key, (old, new) in there["difference"].items()} != {}
    with pytest.raises(ConfigError, match=r"unknown arm of this study 'pcp' -> did you mean 'pcpo'\?"):
        write_study_report(out, baseline="pcp")

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'pcpo\[study\]'"):
        write_study_report(out)
