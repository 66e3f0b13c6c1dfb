"""benchmarks/adapters.py compares the same sampling on both sides, and writes what it finds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks/adapters.py"


def test_it_measures_and_writes(folders, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("adapters", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target, models = tmp_path / "adapters.json", [str(folders["sd"]), str(folders["sd3"])]
    module.main(["--models", *models, "--pictures", "2", "--steps", "2", "--repeats", "2", "--output", str(target)])
    found = json.loads(target.read_text("utf-8"))
    assert list(found["models"]) == models
    for model in found["models"].values():
        assert model["ratio"]["wall"] > 0 and len(model["seconds"]["pipeline"]["cpu"]) == 2
    assert capsys.readouterr().out.count("wall") == 2


def test_the_committed_figures_meet_the_target():
    found = json.loads((FILE.parent / "results/adapters.json").read_text("utf-8"))
    assert all(max(model["ratio"].values()) <= found["target"] for model in found["models"].values())
