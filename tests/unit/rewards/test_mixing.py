import pytest
import torch

from pcpo.errors import RewardError
from pcpo.rewards.base import evaluate
from pcpo.rewards.mixing import WeightedSum
from pcpo.types import RewardResult

IMAGES = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)


def run(reward):
    return evaluate(reward, IMAGES, ["a", "b", "c"], [{}] * 3)


def abstains(images, prompts, metadata):
    return RewardResult(
        torch.tensor([5.0, float("nan"), 7.0]),
        torch.tensor([True, False, True]),
        {"detail": torch.tensor([1.0, 2.0, 3.0])},
    )


def test_sum_of_raw_values_with_the_parts_in_info():
    mixed = WeightedSum(
        [
            ("a", lambda i, p, m: [1, 2, 3], 2.0),
            ("b", lambda i, p, m: [10, 20, 30], -0.5),
            ("c", abstains, 0.0),
        ]
    )
    result = run(mixed)
    assert result.values.tolist() == [-3, 0, -9]
    assert result.valid.tolist() == [True, False, True]
    assert {key: part.tolist() for key, part in result.info.items()} == {
        "a": [1, 2, 3],
        "b": [10, 20, 30],
        "c": [5, 0, 7],
        "c/detail": [1, 2, 3],
    }


def test_sums_nest():
    inner = WeightedSum([("a", lambda i, p, m: [1, 2, 3], 1.0)])
    result = run(WeightedSum([("x", inner, 2.0)]))
    assert result.values.tolist() == [2, 4, 6] and list(result.info) == ["x", "x/a"]


def test_a_failing_part_is_named():
    with pytest.raises(RewardError, match=r"reward 'bad': returned None"):
        run(WeightedSum([("good", lambda i, p, m: [1, 2, 3], 1.0), ("bad", lambda i, p, m: None, 1.0)]))


def test_parts_write_to_their_own_copies():
    def vandal(images, prompts, metadata):
        images.fill_(255)
        return [0, 0, 0]

    result = run(WeightedSum([("vandal", vandal, 1.0), ("sum", lambda i, p, m: i.float().sum(dim=(1, 2, 3)), 1.0)]))
    assert result.values.tolist() == [0, 0, 0]


def test_senseless_sums_are_refused():
    with pytest.raises(RewardError, match=r"no reward given"):
        WeightedSum([])
    with pytest.raises(RewardError, match=r"reward 'a': weight nan"):
        WeightedSum([("a", abstains, float("nan"))])
    with pytest.raises(RewardError, match=r"reward 'a': name used twice"):
        WeightedSum([("a", abstains, 1.0), ("a", abstains, 1.0)])
