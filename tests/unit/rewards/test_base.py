import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcpo.errors import NumericError, RewardError
from pcpo.rewards.base import evaluate
from pcpo.types import RewardResult

PROMPTS = ["a red apple", "a cat", "the sun"]
IMAGES = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)


def score(returned, name="mine"):
    return evaluate(lambda images, prompts, metadata: returned, IMAGES, PROMPTS, [{}] * 3, name=name)


@pytest.mark.parametrize(
    "returned",
    [
        torch.tensor([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
        np.array([1, 2, 3], dtype=np.uint8),
        np.array([1, 2, 3], dtype=np.float16),
        [1, 2.0, np.float32(3)],
        (torch.tensor(1.0), np.array(2), 3),
        (torch.tensor([1.0, 2.0, 3.0]), {}),
        RewardResult(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3, dtype=torch.bool)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_accepted_returns(returned):
    result = score(returned)
    assert result.values.tolist() == [1.0, 2.0, 3.0]
    assert result.values.dtype == torch.float32 and not result.values.requires_grad
    assert result.valid.tolist() == [True] * 3 and result.info == {}


def test_booleans_count_as_numbers():
    assert score([True, False, np.True_]).values.tolist() == [1, 0, 1]
    assert score(torch.tensor([True, False, True])).values.tolist() == [1, 0, 1]


def test_info_is_checked_and_kept():
    result = score(([1, 2, 3], {"size": np.array([4, 5, 6])}))
    assert result.info["size"].tolist() == [4, 5, 6]
    with pytest.raises(RewardError, match=r"reward 'mine', info 'size': returned shape \(2,\)"):
        score(([1, 2, 3], {"size": [4, 5]}))
    with pytest.raises(RewardError, match=r"info 'size': returned nan at picture 2"):
        score(([1, 2, 3], {"size": [4, 5, float("nan")]}))


def test_abstention_zeroes_the_value_and_only_there():
    valid = torch.tensor([True, False, True])
    values = torch.tensor([1.0, float("nan"), 3.0])
    result = score(RewardResult(values, valid, {"raw": torch.tensor([1.0, float("inf"), 9.0])}))
    assert result.values.tolist() == [1, 0, 3] and result.valid.tolist() == [True, False, True]
    assert result.info["raw"].tolist() == [1, 0, 9]
    assert score(RewardResult(torch.ones(3), torch.tensor([False, True, True]))).values.tolist() == [0, 1, 1]
    with pytest.raises(RewardError, match=r"returned nan at picture 1"):
        score(RewardResult(values, torch.ones(3, dtype=torch.bool)))


def test_a_batch_may_abstain_altogether():
    result = score(RewardResult(torch.full((3,), float("nan")), torch.zeros(3, dtype=torch.bool)))
    assert result.values.tolist() == [0, 0, 0] and not result.valid.any()


REFUSED = {
    "None": (None, "returned None"),
    "two axes": (torch.zeros(3, 2), r"returned shape \(3, 2\) instead of \(3,\)"),
    "column": (np.zeros((3, 1)), r"returned shape \(3, 1\) instead of \(3,\)"),
    "no axis": (torch.tensor(1.0), r"returned shape \(\) instead"),
    "one number": (1.5, "returned the single number 1.5"),
    "too few": ([1.0], r"returned shape \(1,\) instead"),
    "text": ("good", "returned a str"),
    "mapping": ({"a": 1}, "returned a dict"),
    "texts": (["a", "b", "c"], "element 0 is of type str"),
    "None inside": ([1.0, None, 2.0], "element 1 is None"),
    "nested": ([[1.0], [2.0], [3.0]], "element 0 is of type list"),
    "nested tensors": ([torch.zeros(2)] * 3, r"element 0 has shape \(2,\)"),
    "huge integer": ([10**400, 1, 2], "not numbers"),
    "complex tensor": (torch.zeros(3, dtype=torch.complex64), "returned dtype torch.complex64"),
    "complex array": (np.zeros(3, dtype=complex), "returned an array of dtype complex128"),
    "object array": (np.array([None] * 3), "returned an array of dtype object"),
    "meta tensor": (torch.zeros(3, device="meta"), "returned what is not numbers"),
    "NaN": ([0.0, 0.0, float("nan")], "returned nan at picture 2, prompt 'the sun'"),
    "inf": (
        torch.tensor([float("-inf"), 1.0, float("inf")]),
        "returned -inf at picture 0 and 1 more, prompt",
    ),
    "float64 only": (np.array([0, 1e300, 0]), "returned inf at picture 1"),
    "valid shape": (
        RewardResult(torch.zeros(3), torch.ones(2, dtype=torch.bool)),
        r"valid is torch.bool \(2,\)",
    ),
    "valid type": (RewardResult(torch.zeros(3), torch.ones(3)), "valid is torch.float32"),
    "valid None": (RewardResult(torch.zeros(3), None), None),
    "valid text": (RewardResult(torch.zeros(3), "yes"), "valid is of type str"),
    "info type": (RewardResult(torch.zeros(3), torch.ones(3, dtype=torch.bool), [1]), "info is of type list"),
}
ACCEPTED_AFTER_ALL = {"valid None"}


@pytest.mark.parametrize("case", sorted(REFUSED.keys() - ACCEPTED_AFTER_ALL))
def test_refused_returns_name_the_reward_and_the_fault(case):
    returned, message = REFUSED[case]
    with pytest.raises(RewardError, match=message) as caught:
        score(returned)
    assert "reward 'mine'" in caught.value.where and caught.value.fix


def test_raising_rewards_are_wrapped_in_one_line():
    def broken(images, prompts, metadata):
        raise ZeroDivisionError("no pictures\nsecond line")

    with pytest.raises(RewardError, match=r"'mine': raised ZeroDivisionError: no pictures ->") as caught:
        evaluate(broken, IMAGES, PROMPTS, [{}] * 3, name="mine")
    assert "\n" not in str(caught.value) and isinstance(caught.value.__cause__, ZeroDivisionError)

    def leaves(images, prompts, metadata):
        raise SystemExit(0)

    with pytest.raises(RewardError, match=r"raised SystemExit: 0"):
        evaluate(leaves, IMAGES, PROMPTS, [{}] * 3)


def test_our_own_errors_pass_unchanged():
    def refuses(images, prompts, metadata):
        raise NumericError("mine")

    with pytest.raises(NumericError, match=r"^mine$"):
        evaluate(refuses, IMAGES, PROMPTS, [{}] * 3)


def test_a_reward_cannot_change_what_the_caller_holds():
    images, prompts, metadata = IMAGES.clone(), list(PROMPTS), [{"a": 1}, {}, {}]

    def vandal(images, prompts, metadata):
        images.fill_(9)
        prompts.clear()
        metadata[0]["a"] = 2
        return [1, 2, 3]

    assert evaluate(vandal, images, prompts, metadata).values.tolist() == [1, 2, 3]
    assert torch.equal(images, IMAGES) and prompts == PROMPTS and metadata == [{"a": 1}, {}, {}]


def test_a_reused_return_buffer_is_copied():
    buffer = torch.zeros(3)
    result = score(buffer)
    buffer.fill_(7)
    assert result.values.tolist() == [0, 0, 0]


def test_the_caller_is_checked_too():
    with pytest.raises(RewardError, match=r"3 images, 2 prompts and 3 metadata"):
        evaluate(lambda i, p, m: [0, 0, 0], IMAGES, PROMPTS[:2], [{}] * 3)
    with pytest.raises(RewardError, match=r"called with images torch.float32"):
        evaluate(lambda i, p, m: [0, 0, 0], IMAGES.float(), PROMPTS, [{}] * 3)


numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2) | st.complex_numbers()
lists = st.lists(numbers, max_size=4)
arrays = st.lists(st.floats(), max_size=4).map(np.array) | lists.map(lambda v: np.array(v, dtype=object))
tensors = st.lists(st.floats(width=32), max_size=4).map(torch.tensor)
anything = numbers | lists | lists.map(tuple) | arrays | tensors | st.lists(lists, max_size=3)
results = st.builds(RewardResult, anything, anything, st.dictionaries(st.text(max_size=2), anything, max_size=2))


@settings(max_examples=300, deadline=None)
@given(anything | results | st.tuples(anything, st.dictionaries(st.integers(), anything, max_size=1)))
def test_any_return_is_finite_numbers_or_a_reward_error(returned):
    try:
        result = score(returned)
    except RewardError as error:
        assert error.fix
        return
    assert result.values.shape == result.valid.shape == (3,)
    assert result.values.isfinite().all() and (result.values[~result.valid] == 0).all()
    assert all(part.shape == (3,) and part.isfinite().all() for part in result.info.values())
