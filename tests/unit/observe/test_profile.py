"""The profile of an iteration: its table adds up, its trace is Chrome's format, and the trainer is as before."""

from __future__ import annotations

import json

import pytest

from pcpo.observe.profile import profile_iteration


@pytest.fixture
def profiled(trainer, tmp_path):
    it = trainer("sd", kl={"form": "exact", "beta": 0.01}, train={"updates": 2})
    return it, profile_iteration(it, tmp_path / "trace.json")


def test_the_parts_add_up(profiled):
    _, found = profiled
    rows = {name: (calls, seconds) for name, calls, seconds, _ in found.rows}
    outer = sum(seconds for name, (_, seconds) in rows.items() if not name.startswith(" ") and name != "iteration")
    inner = sum(seconds for name, (_, seconds) in rows.items() if name.startswith(" "))
    assert outer == pytest.approx(found.seconds) and inner == pytest.approx(rows["update"][1])
    assert all(seconds >= 0 for _, seconds in rows.values())
    # 4 steps in one call each; 2 updates of 12 pairs in calls of 6, each with one of the reference
    assert rows["model calls of the rollout"][0] == 4 and rows["  model calls"][0] == 8
    assert rows["  optimiser steps"][0] == 2 and rows["decoding"][0] == rows["reward"][0] == 1
    assert sum(share for name, _, _, share in found.rows if not name.startswith(" ")) == pytest.approx(2)


def test_the_trace_is_chromes_and_has_the_labels(profiled):
    _, found = profiled
    events = json.loads(found.trace.read_text("utf-8"))["traceEvents"]
    names = {event["name"] for event in events}
    assert {"iteration", "decode", "reward", "update", "optimiser step", "model call in the update"} <= names
    assert any(name.startswith("aten::") for name in names)


def test_the_trainer_is_left_as_it_was(profiled):
    it, _ = profiled
    assert "call" not in vars(it.adapter) and "run" not in vars(it.learner.updater)
    assert it.learner.reward.__name__ != "labelled"
    assert it.state.iteration == 2
