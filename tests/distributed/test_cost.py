"""The cost model against what processes do: rows and bytes, to the last one."""

from __future__ import annotations

import json

import pytest

import ranks
import training
from pcpo.trainer.config import Config
from pcpo.trainer.cost import iteration_cost

SETTINGS = {
    "batch": {"prompts": 2, "group_size": 4},
    "train": {"iterations": 1, "updates": 2, "epochs": 2},
    "kl": {"form": "exact", "beta": 0.1},
    "evaluation": {"every": 100, "num_prompts": 1},
}


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_rows_and_bytes_are_as_predicted(folders, tmp_path, world):
    config = training.settings("sd", folders["sd"], tmp_path / "run", **SETTINGS)
    assert ranks.finish(ranks.launch(world, ranks.train_counted, config)) == [0] * world, ranks.said(config)
    for rank in range(world):
        measured = json.loads((tmp_path / f"run.cost{rank}.json").read_text())
        cost = iteration_cost(Config.model_validate(config), **measured["shape"], world=world)
        for name in ("trained", "reduced", "trajectory"):
            assert measured[name] == getattr(cost, name), (rank, name)
        assert measured["sampled"] == cost.sampled + cost.reference


def test_cost_of_one_process_over_many(folders, tmp_path):
    config = Config.model_validate(training.settings("sd", folders["sd"], tmp_path, **SETTINGS))
    shape = {"trained_steps": 4, "latent": 256, "parameters": 1000, "tensors": 4}
    one, four = (iteration_cost(config, **shape, world=world) for world in (1, 4))
    assert (one.pictures, one.reduced) == (8, 0)
    assert four.work * 4 == one.work and four.trajectory * 4 == one.trajectory
    assert four.reduced == 4 * 4 * 1004  # updates x epochs, four bytes each
    assert one.seconds(0.1, 1e9, 1) == pytest.approx(0.1 * one.work)
