"""examples/own_reward.py runs as it stands."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import torch

from pcpo.observe.events import read_events
from pcpo.rewards import check_reward

FILE = Path(__file__).parents[2] / "examples/own_reward.py"
SMALL = ["sampler.steps=3", "batch.prompts=2", "batch.group_size=2", "train.iterations=1", "evaluation.per_prompt=1"]


def test_the_reward_is_redness():
    redness = runpy.run_path(str(FILE))["redness"]
    assert check_reward(redness) == []
    pure = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    for channel in range(3):
        pure[channel, channel] = 255
    assert redness(pure, ["", "", ""], [{}, {}, {}]).tolist() == [255.0, -127.5, -127.5]


def test_it_trains(folders, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", [str(FILE), f"model.path={folders['sd']}", f"run.output={run}", *SMALL])
    runpy.run_path(str(FILE), run_name="__main__")
    log = read_events(run / "events.jsonl")
    assert len(log.iterations) == 1 and log.iterations[0].grad_norm > 0
    assert log.run_start.config["reward"][0]["name"] == "redness"
    before, after = (event.reward_mean for event in log.evaluations)
    assert f"redness {before:.1f} -> {after:.1f}, pictures in {run}" in capsys.readouterr().out.replace("\n", " ")
