import numpy as np
import pytest
import torch
from PIL import Image

from pcpo.errors import RewardError
from pcpo.rewards.checker import probe_pictures
from pcpo.rewards.preprocess import Preprocess

CONFIG = {
    "size": {"shortest_edge": 24},
    "crop_size": {"height": 24, "width": 20},
    "do_center_crop": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
MEAN, STD = torch.tensor(CONFIG["image_mean"]).view(3, 1, 1), torch.tensor(CONFIG["image_std"]).view(3, 1, 1)


def preprocess(**changes):
    return Preprocess.from_config({**CONFIG, **changes}, where="test")


def pictures(height, width):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (2, 3, height // 4 + 1, width // 4 + 1), generator=generator, dtype=torch.uint8)
    return noise.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :height, :width]


@pytest.mark.parametrize("shape", [(64, 64), (50, 81), (81, 50), (12, 16), (24, 24)])
@pytest.mark.parametrize("resample", [2, 3])
def test_follows_pillow(shape, resample):
    images = pictures(*shape)
    ours = preprocess(resample=resample)(images)
    assert ours.shape == (2, 3, 24, 20)
    height, width = (int(24 * side / min(shape)) for side in shape)
    for image, got in zip(images, ours, strict=True):
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), resample)
        top, left = (height - 24) // 2, (width - 20) // 2
        crop = np.asarray(small)[top : top + 24, left : left + 20]
        difference = ((got * STD + MEAN) * 255 - torch.from_numpy(crop.copy()).permute(2, 0, 1)).abs()
        # Pillow's weights are fixed-point: a rare pixel falls on the other side of a half
        assert difference.max() < 1.01 and difference.mean() < 0.03


def test_equals_the_processor_of_transformers():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = probe_pictures()
    config = {**CONFIG, "resample": 3, "do_resize": True, "do_rescale": True, "do_normalize": True}
    theirs = CLIPImageProcessorPil(**config, rescale_factor=1 / 255)(images=list(images), return_tensors="pt")
    difference = (preprocess()(images) - theirs["pixel_values"]).abs() * STD * 255
    assert difference.max() <= 1.01 and difference.mean() < 0.1


def test_picture_of_the_right_size_is_only_normalised():
    images = probe_pictures()
    got = preprocess(size={"height": 64, "width": 64}, do_center_crop=False)(images)
    assert torch.equal(got, (images.float() * (1 / 255) - MEAN) / STD)


def test_steps_can_be_switched_off():
    images = probe_pictures()
    plain = preprocess(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
    assert torch.equal(plain(images), images.float())
    assert preprocess(size=16, crop_size=16)(images).shape == (6, 3, 16, 16)
    nearest = preprocess(resample=0, size={"height": 32, "width": 32}, do_center_crop=False, do_normalize=False)
    torch.testing.assert_close(nearest(images) * 255, images[:, :, 1::2, 1::2].float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 1}, "resample 1"),
        ({"size": None}, "TypeError"),
        ({"size": {"longest_edge": 3}}, "KeyError"),
        ({"crop_size": {"height": 3}}, "KeyError: 'width'"),
        ({"image_mean": [0.5]}, "1 channels instead of 3"),
        ({"image_std": ["a", 1, 1]}, "could not convert"),
    ],
)
def test_unusable_settings_are_typed(changes, message):
    with pytest.raises(RewardError, match=message):
        preprocess(**changes)


def test_crop_larger_than_the_picture():
    with pytest.raises(ValueError, match=r"crop 24 x 20 of a picture of 8 x 8"):
        preprocess(do_resize=False)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
