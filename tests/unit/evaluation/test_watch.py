"""Monitors of an evaluation: distances that mean what they say, and the event that carries them."""

from __future__ import annotations

import pytest
import torch

from pcpo.evaluation.monitors import MONITORS
from pcpo.evaluation.watch import Watcher, lab_distance, linear, mean_distance, square, to_lab
from pcpo.observe.trackers import scalars
from training import pictures, run


def flat(*colours, side=16):
    return torch.tensor(colours, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, side, side)


def test_lab_of_known_colours():
    colours = flat((255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255), (119, 119, 119), side=1)
    lab = to_lab(linear(colours).double())[:, :, 0, 0]
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    torch.testing.assert_close(lab, torch.tensor(expected, dtype=torch.float64), atol=0.02, rtol=0)


def test_lab_distance_is_a_colour_difference_of_every_pair():
    images = flat((255, 255, 255), (0, 0, 0), (0, 0, 0), (255, 0, 0), side=48)
    white_black, white_black_too, white_red, same, *_ = lab_distance(images).tolist()
    assert white_black == white_black_too == pytest.approx(100, abs=1e-4)
    assert same == 0
    assert white_red == pytest.approx((46.76**2 + 80.09**2 + 67.20**2) ** 0.5, abs=0.05)
    assert lab_distance(images[:1]).shape == (0,)


def test_distances_of_pairs_as_a_matrix():
    expected = torch.tensor([[0.0, 1, 2], [1, 0, 3], [2, 3, 0]], dtype=torch.float64)
    assert torch.equal(square(torch.tensor([1.0, 2.0, 3.0]), 3), expected)


@pytest.mark.parametrize("per_prompt", [1, 2, 3])
def test_mean_distance_against_a_loop(per_prompt):
    distance = square(torch.rand(15, generator=torch.Generator().manual_seed(0)), 6)
    found = mean_distance(distance, per_prompt)
    for prompt, value in enumerate(found.tolist()):
        own = range(prompt * per_prompt, (prompt + 1) * per_prompt)
        others = own if per_prompt > 1 else range(6)
        pairs = [distance[i, j].item() for i in own for j in others if i != j]
        assert value == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize(("side", "name"), [(64, "emoji_clip"), (48, "lab32")])
def test_diversity_falls_to_zero_when_a_prompt_has_one_picture(side, name):
    images = pictures(6, side, side)
    collapsed = images[::2].repeat_interleave(2, dim=0)
    watcher = Watcher()
    before, after = watcher(images, 2), watcher(collapsed, 2)
    assert before["diversity_features"] == after["diversity_features"] == name
    assert before["diversity_among"] == "prompt"
    assert min(before["monitors_per_prompt"]["diversity"]) > 0.01
    assert after["monitors_per_prompt"]["diversity"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert (before["monitors"]["near_duplicates"], after["monitors"]["near_duplicates"]) == (0, 1)


def test_one_picture_a_prompt_is_compared_with_the_other_prompts():
    found = Watcher()(flat((0, 0, 0), (0, 0, 0), (255, 255, 255)), 1)
    assert found["diversity_among"] == "set"
    assert found["monitors_per_prompt"]["diversity"] == pytest.approx([50, 50, 100])
    alone = Watcher()(flat((0, 0, 0)), 1)
    assert "diversity" not in alone["monitors"] and "diversity_features" not in alone


def test_every_evaluation_logs_its_monitors(trainer):
    watched = trainer("sd", evaluation={"per_prompt": 2, "rewards": ["jpeg_compressibility"]}, train={"iterations": 2})
    log = run(watched)
    for event in log.evaluations:
        assert event.monitors.keys() == {"diversity", *MONITORS}
        assert event.diversity_features == "lab32" and event.diversity_among == "prompt"
        for mean, rows in [
            *((event.monitors[name], event.monitors_per_prompt[name]) for name in event.monitors),
            *((event.held_out[name], event.held_out_per_prompt[name]) for name in event.held_out),
        ]:
            assert len(rows) == 2 and mean == pytest.approx(sum(rows) / 2, rel=1e-5)
    sent = scalars({"type": "evaluation", **log.evaluations[-1].model_dump()})
    assert sent["eval/monitors/diversity"] == log.evaluations[-1].monitors["diversity"]
    assert not any("per_prompt" in name for name in sent)
