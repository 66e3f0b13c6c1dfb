"""Diversity and the scores over captions against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from pcpo.evaluation.alignment import alignment, class_probabilities, inception_score, retrieval
from pcpo.evaluation.diversity import pairwise_distance, perceptual_distance, vendi_score


def test_pairwise_distance_of_known_angles():
    x = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]])
    assert pairwise_distance(x).tolist() == pytest.approx([1, 2, 1])


def test_duplicates_have_no_diversity():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, generator=g).repeat(4, 1)
    assert pairwise_distance(x).abs().max() == 0
    stages = [torch.randn(1, 9, 8, generator=g).repeat(4, 1, 1), torch.randn(1, 4, 16, generator=g).repeat(4, 1, 1)]
    assert perceptual_distance(stages).abs().max() < 1e-12
    assert vendi_score(x) == pytest.approx(1)


def test_perceptual_distance_against_loops():
    g = torch.Generator().manual_seed(0)
    stages = [torch.randn(3, 9, 8, generator=g).double(), torch.randn(3, 4, 16, generator=g).double()]
    expected = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        parts = []
        for stage in stages:
            places = [
                (stage[a, place] / stage[a, place].norm() - stage[b, place] / stage[b, place].norm()).square().sum()
                for place in range(stage.shape[1])
            ]
            parts.append(torch.stack(places).mean())
        expected.append(float(sum(parts) / 2))
    assert perceptual_distance(stages).tolist() == pytest.approx(expected, rel=1e-8)


def test_perceptual_distance_ignores_contrast_and_reaches_four():
    x = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0))
    assert perceptual_distance([torch.cat([x, 3 * x])]).item() == pytest.approx(0, abs=1e-9)
    assert perceptual_distance([torch.cat([x, -x])]).item() == pytest.approx(4, rel=1e-8)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_vendi_counts_orthogonal_kinds(count):
    kinds = torch.eye(8)[:count].repeat(5, 1) * 3
    assert vendi_score(kinds) == pytest.approx(count)


def test_vendi_of_two_at_an_angle():
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    values = (1 + 0.6) / 2, (1 - 0.6) / 2
    assert vendi_score(x) == pytest.approx(math.exp(-sum(v * math.log(v) for v in values)))


def test_inception_score_of_one_hot_and_uniform():
    assert inception_score(torch.eye(5).repeat(3, 1)) == pytest.approx(5)
    assert inception_score(torch.full((7, 5), 0.2)) == pytest.approx(1)
    assert inception_score(torch.eye(5)[:1].repeat(6, 1)) == pytest.approx(1)
    mixed = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert inception_score(mixed) == pytest.approx(math.exp(expected), rel=1e-6)


def test_alignment_retrieval_and_probabilities():
    similarity = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.3, 0.2], [0.0, 0.1, 0.5], [0.2, 0.1, 0.7]])
    own = torch.tensor([0, 1, 2, 2])
    assert alignment(similarity, own) == pytest.approx((0.9 + 0.3 + 0.5 + 0.7) / 4)
    assert retrieval(similarity, own) == 0.75
    p = class_probabilities(similarity, 10.0)
    assert p.sum(1).tolist() == pytest.approx([1] * 4)
    assert float(p[0, 0] / p[0, 1]) == pytest.approx(math.exp(8), rel=1e-5)
    assert inception_score(class_probabilities(torch.eye(4), 1000.0)) == pytest.approx(4)
