"""What does not fit a model is refused before any weight of it is read."""

from __future__ import annotations

import json

import pytest

from pcpo.errors import ConfigError, ModelError
from pcpo.plan.precheck import check_model
from pcpo.trainer.configfile import load_config, merge, validate
from pcpo.trainer.loop import PCPOTrainer

BAD = {
    "resolution": ({"model": {"resolution": 30}}, ModelError, "not a multiple"),
    "lora": ({"model": {"lora": {"targets": ["nothing"]}}}, ConfigError, "matches no module"),
    "family": ({"sampler": {"name": "flow_sde"}}, ConfigError, "samples flow models"),
}


@pytest.mark.parametrize("preset", ["pcpo_sd", "pcpo_sd3"])
def test_settings_that_fit_pass(preset):
    check_model(load_config(preset))


@pytest.mark.parametrize("name", BAD)
def test_refused_without_a_weight(name, tmp_path, monkeypatch):
    change, error, words = BAD[name]
    loaded = []
    monkeypatch.setattr("pcpo.trainer.loop.prepare_adapter", lambda *args, **kwargs: loaded.append(args))
    config = merge(load_config("pcpo_sd").model_dump(mode="json"), change)
    config["run"]["output"] = str(tmp_path / "run")
    with pytest.raises(error, match=words):
        PCPOTrainer(config=validate(config), quiet=True)
    assert not loaded and not (tmp_path / "run").exists()


def test_a_scheduler_without_a_grid(tmp_path, folders):
    folder = tmp_path / "model"
    folder.mkdir()
    for part in folders["sd3"].iterdir():
        if part.name not in ("scheduler", "model_index.json"):
            (folder / part.name).symlink_to(part)
    index = (folders["sd3"] / "model_index.json").read_text("utf-8")
    (folder / "model_index.json").write_text(index.replace("FlowMatchEulerDiscreteScheduler", "DDPMScheduler"), "utf-8")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}), "utf-8")
    config = load_config("pcpo_sd3", [f"model.path={folder}"])
    with pytest.raises((ConfigError, ModelError), match="scheduler"):
        check_model(config)
