from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pcpo.rewards.builtin import colorfulness, jpeg_compressibility, jpeg_incompressibility
from pcpo.rewards.checker import probe_pictures

REWARDS = [colorfulness, jpeg_compressibility, jpeg_incompressibility]


def call(reward, images):
    return reward(images, [""] * len(images), [{}] * len(images))


def loop_colorfulness(picture):
    """The paper's formula on one picture [3, H, W], in numpy, as it is printed."""
    red, green, blue = picture.numpy().astype(np.float64)
    rg, yb = red - green, 0.5 * (red + green) - blue
    return np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())


def test_grey_has_no_colour():
    grey = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    assert call(colorfulness, grey).tolist() == [0.0]


def test_two_colours_by_hand():
    # half pure red: rg 255, yb 127.5; half pure blue: rg 0, yb -255
    # means 127.5 and -63.75, deviations 127.5 and 191.25
    picture = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    picture[0, 0, 0] = 255
    picture[0, 2, 1] = 255
    expected = (127.5**2 + 191.25**2) ** 0.5 + 0.3 * (127.5**2 + 63.75**2) ** 0.5
    assert call(colorfulness, picture).item() == pytest.approx(expected, rel=1e-7)
    assert expected == pytest.approx(272.6187, abs=1e-4)


def test_one_flat_colour_counts_only_its_shift():
    flat = torch.tensor([10, 40, 5], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    assert call(colorfulness, flat).item() == pytest.approx(0.3 * (30**2 + 20**2) ** 0.5, rel=1e-7)


def test_colorfulness_equals_the_loop():
    pictures = probe_pictures()
    expected = [loop_colorfulness(picture) for picture in pictures]
    assert call(colorfulness, pictures).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_jpeg_size_is_what_pillow_writes():
    pictures = probe_pictures()
    sizes = []
    for picture in pictures:
        buffer = BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="JPEG", quality=95)
        sizes.append(len(buffer.getvalue()) / 1000)
    assert call(jpeg_incompressibility, pictures).tolist() == pytest.approx(sizes, rel=1e-6)
    assert torch.equal(call(jpeg_compressibility, pictures), -call(jpeg_incompressibility, pictures))
    assert call(jpeg_incompressibility, pictures).argmax() == 0  # noise is the hardest to compress


@pytest.mark.parametrize("reward", REWARDS)
@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 9), height=st.integers(1, 33), width=st.integers(1, 33), seed=st.integers(0, 99))
def test_a_value_does_not_depend_on_the_batch(reward, size, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8, generator=generator)
    whole = call(reward, images)
    assert whole.shape == (size,) and whole.dtype == torch.float32
    assert torch.equal(whole, torch.cat([call(reward, image[None]) for image in images]))
    assert torch.equal(whole.flip(0), call(reward, images.flip(0)))
