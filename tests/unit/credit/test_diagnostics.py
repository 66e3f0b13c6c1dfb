from __future__ import annotations

import math

import torch

from pcpo.credit.diagnostics import gradient_share, share, spread


def test_share():
    assert share(torch.tensor([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert share(torch.zeros(3)).tolist() == [0, 0, 0]


def test_spread():
    assert spread(torch.tensor([2.0, 8.0, 4.0])) == 4
    assert spread(torch.tensor([0.0, 1.0])) == math.inf


def test_gradient_share():
    assert gradient_share(torch.tensor([[1.0, 1.0], [3.0, 11.0]])).tolist() == [0.25, 0.75]
    assert gradient_share(torch.tensor([1.0, 4.0])).tolist() == share(torch.tensor([1.0, 4.0])).tolist()
