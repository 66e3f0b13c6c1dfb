import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pcpo.data.images import contact_sheet, load_image, save_png, to_pil
from pcpo.errors import ImageError


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def encode(image, format_name, **options):
    buffer = BytesIO()
    image.save(buffer, format=format_name, **options)
    return buffer.getvalue()


def test_png_round_trip(tmp_path):
    path = tmp_path / "new" / "0.png"
    save_png(noise(3, 5, 7), path)
    assert torch.equal(load_image(path), noise(3, 5, 7))
    assert torch.equal(load_image(path.read_bytes()), noise(3, 5, 7))


def test_allowed_formats():
    picture = to_pil(noise(3, 8, 8))
    assert torch.equal(load_image(encode(picture, "WEBP", lossless=True)), noise(3, 8, 8))
    assert load_image(encode(picture, "JPEG")).shape == (3, 8, 8)
    for name in ("GIF", "BMP", "TIFF", "PPM"):
        with pytest.raises(ImageError, match="not a picture in PNG, JPEG, WEBP"):
            load_image(encode(picture, name))


def test_transparency_becomes_white_and_grey_becomes_rgb():
    clear = Image.fromarray(np.array([[[9, 9, 9, 0], [10, 20, 30, 255]]], dtype=np.uint8))
    expected = torch.tensor([[[255, 10]], [[255, 20]], [[255, 30]]], dtype=torch.uint8)
    assert torch.equal(load_image(encode(clear, "PNG")), expected)
    assert torch.equal(load_image(encode(Image.new("L", (2, 1), 7), "PNG")), torch.full((3, 1, 2), 7).byte())


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    assert load_image(encode(Image.new("RGB", (4, 2)), "JPEG", exif=exif)).shape == (3, 4, 2)


def test_pixel_cap_is_checked_before_decoding():
    data = encode(Image.new("RGB", (100, 50)), "PNG")
    assert load_image(data, max_pixels=5000).shape == (3, 50, 100)
    header_only = data[:60]
    with pytest.raises(ImageError, match="100 x 50 pixels -> the limit is 4,999"):
        load_image(header_only, max_pixels=4999)
    with pytest.raises(ImageError, match="damaged picture"):
        load_image(header_only)


def test_a_bomb_is_refused_from_its_header():
    data = bytearray(encode(Image.new("RGB", (8, 8)), "PNG"))
    for side in (12_000, 60_000):  # over Pillow's warning, over its error
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        with pytest.raises(ImageError, match=r"limit|DecompressionBomb"):
            load_image(bytes(data))


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path, "a\x00b.png"):
        with pytest.raises(ImageError):
            load_image(path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_damaged_files_are_typed(junk, place, format_name):
    data = encode(to_pil(noise(3, 8, 8)), format_name)
    try:
        assert load_image(data[:place] + junk + data[place + len(junk) :]).dtype == torch.uint8
    except ImageError as error:
        assert error.fix


def test_contact_sheet_places_every_picture():
    images = noise(3, 3, 4, 5)
    sheet = contact_sheet(images, columns=2, pad=1, background=9)
    assert sheet.shape == (3, 2 * 5 + 1, 2 * 6 + 1)
    assert torch.equal(sheet[:, 1:5, 1:6], images[0])
    assert torch.equal(sheet[:, 1:5, 7:12], images[1])
    assert torch.equal(sheet[:, 6:10, 1:6], images[2])
    assert (sheet[:, 6:10, 7:12] == 9).all() and (sheet[:, 0] == 9).all() and (sheet[:, :, 0] == 9).all()


def test_wrong_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected uint8"):
        save_png(torch.zeros(3, 4, 4), tmp_path / "x.png")
    with pytest.raises(ValueError, match="expected uint8"):
        contact_sheet(noise(3, 4, 4), 1)
    with pytest.raises(ValueError, match="columns >= 1"):
        contact_sheet(noise(1, 3, 4, 4), 0)
