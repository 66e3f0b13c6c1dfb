from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcpo.data.sampler import PromptSampler
from pcpo.errors import ConfigError, PromptError


def names(size):
    return [f"prompt {i}" for i in range(size)]


@given(
    size=st.integers(1, 12),
    count=st.integers(1, 15),
    seed=st.integers(0, 2**63),
    iterations=st.integers(1, 12),
)
def test_every_epoch_holds_every_prompt_once(size, count, seed, iterations):
    sampler = PromptSampler(names(size), seed)
    row = [index for i in range(iterations) for index in sampler.batch(i, count)]
    assert len(row) == iterations * count
    for start in range(0, len(row), size):
        epoch = row[start : start + size]
        assert max(Counter(epoch).values()) == 1
        assert all(0 <= index < size for index in epoch)


def test_is_a_pure_function_of_seed_and_iteration():
    forward = [PromptSampler(names(10), 3).batch(i, 4) for i in range(8)]
    sampler = PromptSampler(names(10), 3)
    assert [sampler.batch(i, 4) for i in reversed(range(8))] == forward[::-1]
    assert [PromptSampler(names(10), 4).batch(i, 4) for i in range(8)] != forward


def test_epochs_are_shuffled_differently():
    sampler = PromptSampler(names(50), 0)
    first, second = sampler.batch(0, 50), sampler.batch(1, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second and first != list(range(50))


def test_batch_larger_than_the_set_repeats_evenly():
    assert Counter(PromptSampler(names(3), 1).batch(0, 9)) == {0: 3, 1: 3, 2: 3}


def test_bad_arguments_are_typed():
    with pytest.raises(PromptError, match="no prompts"):
        PromptSampler([], 0)
    with pytest.raises(ConfigError, match="negative"):
        PromptSampler(["a"], -1)
    with pytest.raises(ConfigError, match="at least one prompt"):
        PromptSampler(["a"], 0).batch(0, 0)
    with pytest.raises(ConfigError, match="iteration -1"):
        PromptSampler(["a"], 0).batch(-1, 1)
