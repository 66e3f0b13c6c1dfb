"""What the three ways to mix rewards promise."""

from __future__ import annotations

import pytest
import torch

from pcpo.advantages import grpo, standardised
from pcpo.errors import CheckpointError
from pcpo.trainer.advantage import Advantages
from pcpo.trainer.config import AdvantageSettings
from pcpo.types import RewardResult

GROUPS = (3, 5)
PROMPTS = ["a", "b", "c"]
MIXES = ("weighted_sum", "normalised", "advantages")


def parts(seed=0, spread=(1.0, 40.0)):
    generator = torch.Generator().manual_seed(seed)
    return {name: s * torch.randn(15, generator=generator) for name, s in zip(("x", "y"), spread, strict=True)}


def result(info, weights, valid=None):
    values = sum(w * info[name] for name, w in weights.items())
    return RewardResult(values, torch.ones(15, dtype=torch.bool) if valid is None else valid, info)


def mixed(mix, info, weights, valid=None, **settings):
    return Advantages(AdvantageSettings(**settings), mix, weights)(result(info, weights, valid), GROUPS, PROMPTS)


@pytest.mark.parametrize("name", ["grpo", "global", "running"])
def test_one_reward_of_weight_one_is_the_same_in_all(name):
    info = {"x": parts()["x"]}
    plain, summed, by_part = (
        mixed(mix, info, {"x": 1.0}, name=name, min_count=1)[0]
        for mix in ("weighted_sum", "weighted_sum", "advantages")
    )
    assert torch.equal(plain, summed) and torch.equal(plain, by_part)
    if name == "grpo":
        torch.testing.assert_close(mixed("normalised", info, {"x": 1.0})[0], plain, atol=1e-3, rtol=0)


def test_the_weight_of_one_reward_scales_its_advantage_only_in_advantages():
    info = {"x": parts()["x"]}
    plain = mixed("weighted_sum", info, {"x": 1.0})[0]
    for mix in ("weighted_sum", "normalised"):
        torch.testing.assert_close(mixed(mix, info, {"x": 3.0})[0], plain, atol=1e-3, rtol=0)
    torch.testing.assert_close(mixed("advantages", info, {"x": 3.0})[0], 3 * plain)


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (250.0, -7.0), (0.5, 1e3)])
def test_normalised_does_not_see_scale_or_shift_of_a_part(scale, shift):
    weights = {"x": 1.0, "y": 0.5}
    info = {name: part.double() for name, part in parts().items()}
    moved = {"x": scale * info["x"] + shift, "y": info["y"]}
    torch.testing.assert_close(mixed("normalised", moved, weights)[0], mixed("normalised", info, weights)[0])
    assert not torch.allclose(
        mixed("weighted_sum", moved, weights)[0], mixed("weighted_sum", info, weights)[0], atol=1e-2
    )


def test_normalised_is_the_formula_written_out():
    info, weights = parts(), {"x": 2.0, "y": -1.0}
    total = torch.zeros(GROUPS, dtype=torch.float64)
    for name, weight in weights.items():
        for p, row in enumerate(info[name].double().view(GROUPS)):
            total[p] += weight * (row - row.mean()) / row.std(correction=0)
    advantage, signal, _ = mixed("normalised", info, weights)
    torch.testing.assert_close(signal, total)
    torch.testing.assert_close(advantage, grpo(total, torch.ones(GROUPS, dtype=torch.bool)))


def test_advantages_is_the_weighted_sum_of_each_parts_own():
    info, weights = parts(), {"x": 2.0, "y": -1.0}
    valid = torch.ones(GROUPS, dtype=torch.bool)
    expected = 2 * grpo(info["x"].view(GROUPS), valid) - grpo(info["y"].view(GROUPS), valid)
    torch.testing.assert_close(mixed("advantages", info, weights)[0], expected)


def test_parts_that_cancel_teach_nothing_only_where_they_cancel():
    x = parts()["x"]
    info, weights = {"x": x, "y": -100 * x}, {"x": 1.0, "y": 0.01}
    assert mixed("weighted_sum", info, weights)[0].abs().max() < 1e-2
    assert mixed("advantages", info, weights)[0].abs().max() > 1


@pytest.mark.parametrize("mix", MIXES)
def test_a_dead_group_and_pictures_without_a_judgement_have_advantage_zero(mix):
    info, weights = parts(), {"x": 1.0, "y": 1.0}
    for name in info:
        info[name][:5] = 0.1
    valid = torch.ones(15, dtype=torch.bool)
    valid[[6, 9]] = False
    info["x"][6] = 1e6  # must not be looked at
    advantage, signal, mask = mixed(mix, info, weights, valid)
    assert advantage[0].abs().max() == 0 and not mask[1, 1]
    assert advantage[1, 1] == advantage[1, 4] == 0 and advantage[1].abs().max() < 10
    assert len(set(signal[0].tolist())) == 1


def test_standardised_has_mean_zero_and_spread_one():
    z = standardised(1e-6 * parts()["x"].double().view(GROUPS) + 1, torch.ones(GROUPS, dtype=torch.bool))
    torch.testing.assert_close(z.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones(3, dtype=torch.float64))


def test_running_statistics_are_kept_per_part_and_come_back():
    info, weights = parts(), {"x": 1.0, "y": 0.5}
    settings = AdvantageSettings(name="running", min_count=2)
    first, second = (Advantages(settings, "advantages", weights) for _ in range(2))
    first(result(info, weights), GROUPS, PROMPTS)
    second.load_state_dict(first.state_dict())
    later = result(parts(1), weights)
    assert torch.equal(first(later, GROUPS, PROMPTS)[0], second(later, GROUPS, PROMPTS)[0])
    assert set(first.state_dict()) == {"x", "y"}
    with pytest.raises(CheckpointError, match="statistics of other rewards"):
        Advantages(settings, "advantages", {"z": 1.0}).load_state_dict(first.state_dict())
    assert Advantages(AdvantageSettings(), "advantages", weights).state_dict() is None
