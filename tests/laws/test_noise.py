"""Noise depends on what it is for, and on nothing else."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcpo.samplers.noise import INITIAL, latent_noise, noise_batch

pictures = st.lists(st.tuples(st.text(max_size=8), st.integers(0, 10**6)), min_size=1, max_size=6)


@settings(max_examples=1000, deadline=None)
@given(pictures, st.randoms(use_true_random=False), st.integers(0, 2**40), st.integers(INITIAL, 60))
def test_independent_of_batch_order_and_rank(batch, random, seed, step):
    prompts, samples = zip(*batch, strict=True)
    whole = noise_batch(seed, prompts, samples, step, (4, 3))
    order = list(range(len(batch)))
    random.shuffle(order)
    shuffled = noise_batch(seed, [prompts[i] for i in order], [samples[i] for i in order], step, (4, 3))
    assert torch.equal(shuffled, whole[order])
    assert torch.equal(noise_batch(seed, prompts[:1], samples[:1], step, (4, 3))[0], whole[0])
    ranks = random.randint(1, 3)
    for rank in range(ranks):  # every process draws its own rows
        mine = slice(rank, None, ranks)
        if prompts[mine]:
            assert torch.equal(noise_batch(seed, prompts[mine], samples[mine], step, (4, 3)), whole[mine])


def test_every_argument_counts():
    base = {"seed": 1, "prompt": "a cat", "sample": 2, "step": 3, "shape": (4,)}
    other = [{"seed": 2}, {"prompt": "a cat "}, {"sample": 3}, {"step": INITIAL}]
    drawn = [latent_noise(**base)] + [latent_noise(**{**base, **change}) for change in other]
    assert torch.unique(torch.stack(drawn), dim=0).shape[0] == len(drawn)
    # digits do not run together: (1, 12) is not (11, 2)
    assert not torch.equal(latent_noise(1, "", 12, 3, (4,)), latent_noise(11, "", 2, 3, (4,)))


def test_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    latent_noise(0, "a", 0, 0, (100,))
    assert torch.equal(torch.rand(3), expected)


def test_standard_normal_and_uncorrelated():
    draws = noise_batch(5, [f"p{i}" for i in range(200)], [0] * 200, 0, (500,))
    assert abs(float(draws.mean())) < 0.02 and abs(float(draws.std()) - 1) < 0.02
    assert abs(float((draws[:-1] * draws[1:]).mean())) < 0.02


def test_known_values_do_not_drift():
    # resuming a run and comparing runs rely on these
    expected = torch.tensor([0.25751069, -0.18728018, -1.25396609])
    torch.testing.assert_close(latent_noise(0, "a red fox", 1, INITIAL, (3,)), expected)
