"""Monitors on pictures whose values are known."""

from __future__ import annotations

import pytest
import torch

from pcpo.evaluation.monitors import (
    MONITORS,
    clipped,
    colour_entropy,
    edge_density,
    monitor,
    near_duplicate,
    saturation,
)


def flat(*colours, side=32):
    return torch.tensor(colours, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, side, side).clone()


def halves(left, right, side=32):
    picture = flat(left, side=side)
    picture[..., side // 2 :] = torch.tensor(right, dtype=torch.uint8).view(3, 1, 1)
    return picture


BLACK, WHITE, GREY, RED = (0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 0, 0)


def test_edge_density():
    assert edge_density(flat(BLACK, WHITE, RED)).tolist() == [0, 0, 0]
    # the two columns beside a vertical step
    assert edge_density(halves(BLACK, WHITE)).item() == 2 / 32
    assert edge_density(halves(BLACK, WHITE).transpose(2, 3)).item() == 2 / 32
    # a step of less than a tenth is none
    assert edge_density(halves(GREY, (150, 150, 150))).item() == 0
    assert edge_density(halves(GREY, (160, 160, 160))).item() == 2 / 32
    g = torch.Generator().manual_seed(0)
    assert edge_density(torch.randint(0, 256, (1, 3, 32, 32), generator=g, dtype=torch.uint8)).item() > 0.5


def test_colour_entropy():
    assert colour_entropy(flat(RED)).item() == 0
    assert colour_entropy(halves(BLACK, WHITE)).item() == pytest.approx(1)
    # one colour of every one of the 512 cells, once
    steps = torch.arange(8) * 32 + 5
    r, g, b = torch.meshgrid(steps, steps, steps, indexing="ij")
    every = torch.stack([r, g, b]).reshape(1, 3, 16, 32).to(torch.uint8)
    assert colour_entropy(every).item() == pytest.approx(9)


def test_saturation():
    pictures = flat(BLACK, WHITE, GREY, RED, (200, 100, 100))
    assert saturation(pictures).tolist() == pytest.approx([0, 0, 0, 1, 0.5])


def test_clipped():
    pictures = flat(BLACK, WHITE, GREY, RED, (255, 1, 254))
    assert clipped(pictures).tolist() == pytest.approx([1, 1, 0, 2 / 3, 1 / 3])


def test_near_duplicates():
    g = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (4, 3, 8, 8), generator=g, dtype=torch.uint8)
    pictures = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert near_duplicate(pictures).tolist() == [0, 0, 0, 0]
    nearly = (pictures[:1].int() + 4).clamp(0, 255).to(torch.uint8)
    far = (pictures[1:2].int() + 60).clamp(0, 255).to(torch.uint8)
    assert near_duplicate(torch.cat([pictures, nearly, far])).tolist() == [1, 0, 0, 0, 1, 0]


def test_near_duplicates_over_more_than_a_block():
    g = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (600, 3, 16, 16), generator=g, dtype=torch.uint8)
    assert near_duplicate(pictures).sum() == 0
    pictures[590] = pictures[3]
    assert near_duplicate(pictures).nonzero().flatten().tolist() == [3, 590]


def test_a_picture_does_not_depend_on_its_batch():
    g = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (4, 3, 24, 24), generator=g, dtype=torch.uint8)
    for name, function in MONITORS.items():
        if name != "near_duplicates":
            torch.testing.assert_close(function(pictures)[2:3], function(pictures[2:3]), rtol=0, atol=1e-12)
    assert list(monitor(pictures)) == list(MONITORS)
