"""Frechet and kernel distance against closed forms, their symmetries, and a naive computation."""

from __future__ import annotations

import pytest
import torch

from pcpo.errors import EvaluationError
from pcpo.evaluation.frechet import frechet_distance, kernel_distance


def gaussian(mean, root, size=64, seed=0):
    """A sample [size, d] whose mean is exactly `mean` and whose covariance is exactly root^T root."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, len(mean), generator=g, dtype=torch.float64)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / (size - 1))
    white = x @ vectors / values.sqrt() @ vectors.T
    return white @ torch.as_tensor(root, dtype=torch.float64) + torch.as_tensor(mean, dtype=torch.float64)


def sets(n=20, m=30, d=6):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x, 0.5 * torch.randn(m, d, generator=g, dtype=torch.float64) + 1


def test_one_dimension():
    x, y = gaussian([1.0], [[2.0]], seed=1), gaussian([4.0], [[0.5]], size=50, seed=2)
    assert frechet_distance(x, y) == pytest.approx((1 - 4) ** 2 + (2 - 0.5) ** 2, abs=1e-12)


def test_diagonal_covariances():
    x = gaussian([0.0, 1.0, 2.0], torch.diag(torch.tensor([1.0, 2.0, 3.0])), seed=1)
    y = gaussian([0.0, 0.0, 0.0], torch.diag(torch.tensor([2.0, 2.0, 0.0])), seed=2)
    assert frechet_distance(x, y) == pytest.approx(1 + 4 + 1 + 0 + 9, abs=1e-12)


def test_covariances_that_do_not_commute():
    a, b = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, -1.0], [0.0, 3.0]])
    s, t = (a.T @ a).double(), (b.T @ b).double()
    # of a 2 x 2 matrix with positive eigenvalues: tr M^(1/2) = (tr M + 2 det(M)^(1/2))^(1/2)
    root = ((s @ t).trace() + 2 * (s @ t).det().sqrt()).sqrt()
    expected = s.trace() + t.trace() - 2 * root + 5**2
    found = frechet_distance(gaussian([3.0, 4.0], a, seed=3), gaussian([0.0, 0.0], b, size=40, seed=4))
    assert found == pytest.approx(float(expected), abs=1e-11)


@pytest.mark.parametrize("sizes", [(20, 30), (4, 5), (4, 30)])
def test_equals_the_usual_formula(sizes):
    x, y = sets(*sizes)
    s, t = x.T.cov(), y.T.cov()
    product = torch.linalg.eigvals(s @ t).real.clamp_min(0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + s.trace() + t.trace() - 2 * product
    assert frechet_distance(x, y) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("size", [3, 50])
def test_identical_sets_give_zero(size):
    x, _ = sets(n=size)
    assert frechet_distance(x, x) == frechet_distance(x, x.flip(0)) == 0
    assert frechet_distance(x, x + 1e-5) > 1e-10  # far above rounding, and not taken for it
    assert kernel_distance(x, x) == 0


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_symmetric(distance):
    for sizes in ((20, 30), (25, 25)):
        x, y = sets(*sizes)
        assert distance(x, y) == pytest.approx(distance(y, x), abs=1e-12)


def test_moves_rotations_and_scale():
    x, y = sets()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    base = frechet_distance(x, y)
    assert frechet_distance(x @ rotation + 7, y @ rotation + 7) == pytest.approx(base, rel=1e-12)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * base, rel=1e-12)


def test_kernel_distance_against_loops():
    x, y = sets(5, 7, 3)

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    within = [
        sum(k(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) for z, n in ((x, 5), (y, 7))
    ]
    cross = sum(k(a, b) for a in x for b in y) / 35
    assert kernel_distance(x, y) == pytest.approx(within[0] + within[1] - 2 * cross, rel=1e-12)
    same = sum(k(x[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    within[1] = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    assert kernel_distance(x, y[:5]) == pytest.approx(within[0] + within[1] - 2 * same, rel=1e-12)


def test_kernel_distance_is_unbiased_where_frechet_is_not():
    g = torch.Generator().manual_seed(0)
    draws = [(torch.randn(8, 4, generator=g), torch.randn(8, 4, generator=g)) for _ in range(400)]
    kernels = torch.tensor([kernel_distance(x, y) for x, y in draws])
    assert abs(float(kernels.mean())) < 4 * float(kernels.std()) / 20
    assert min(frechet_distance(x, y) for x, y in draws) > 0.3


def test_scale_of_the_kernel():
    x, y = sets(10, 10, 4)
    assert kernel_distance(x, y, scale=0.25) == kernel_distance(x, y)
    assert kernel_distance(2 * x, 2 * y, scale=0.25) == pytest.approx(kernel_distance(x, y, scale=1.0), rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_what_cannot_be_compared(distance):
    x, y = sets()
    with pytest.raises(EvaluationError, match="cannot be compared"):
        distance(x, y[:, :3])
    with pytest.raises(EvaluationError, match="no spread"):
        distance(x[:1], y)
