"""Pictures in and out: PNG files written whole, contact sheets, a reader for untrusted files."""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pcpo.data.files import write_bytes_atomic
from pcpo.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 4096 * 4096
MAX_FILE_BYTES = 64 * 2**20


def to_pil(image: Tensor) -> Image.Image:
    """uint8 [3, H, W] to a Pillow RGB picture; ValueError for any other shape or dtype."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected uint8 [3, H, W], got {image.dtype} {tuple(image.shape)}")
    return Image.fromarray(np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy()))


def save_png(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write one picture, uint8 [3, H, W], as PNG; whole or not at all (RunFolderError)."""
    buffer = BytesIO()
    to_pil(image).save(buffer, format="PNG")
    write_bytes_atomic(path, buffer.getvalue())


def contact_sheet(images: Tensor, columns: int, pad: int = 2, background: int = 255) -> Tensor:
    """Lay out uint8 [B, 3, H, W] row by row.

    ``pad`` pixels of grey level ``background`` run between and around the pictures; missing places are
    background. Returns uint8 [3, rows (H + pad) + pad, columns (W + pad) + pad].
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"expected uint8 [B, 3, H, W], B >= 1, got {images.dtype} {tuple(images.shape)}")
    if columns < 1 or pad < 0:
        raise ValueError(f"expected columns >= 1 and pad >= 0, got {columns} and {pad}")
    size, _, height, width = images.shape
    rows = -(-size // columns)
    shape = (3, rows * (height + pad) + pad, columns * (width + pad) + pad)
    sheet = torch.full(shape, background, dtype=torch.uint8)
    for place, image in enumerate(images.cpu()):
        top = pad + (place // columns) * (height + pad)
        left = pad + (place % columns) * (width + pad)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def load_image(source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read a PNG, JPEG or WebP file or its bytes; returns uint8 [3, H, W].

    Transparent parts become white, the EXIF orientation is applied, of an animation the first frame is
    read. File size (64 MiB) and picture size (``max_pixels``, from the header) are checked before any
    pixel is decoded.

    Raises ImageError when the file is missing, too large, of another format, or damaged.
    """
    where = "image bytes" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _read(Path(source))
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"file over {MAX_FILE_BYTES // 2**20} MiB", where=where, fix="make it smaller")
    try:
        # our own cap follows at once; Pillow's warning at its default cap would only come twice
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(data), formats=FORMATS)
        width, height = picture.size
        if width * height > max_pixels:
            raise ImageError(
                f"{width} x {height} pixels", where=where, fix=f"the limit is {max_pixels:,} pixels in all"
            )
        return _to_tensor(picture)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"not a picture in {', '.join(FORMATS)}", where=where, fix="convert it") from error
    # decoders meet damaged data with almost any type: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise ImageError(
            f"damaged picture ({type(error).__name__}: {error})", where=where, fix="replace the file"
        ) from error


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ImageError("no such file", where=str(path), fix="check the path")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be read ({error})", where=repr(str(path)), fix="check the path") from error


def _to_tensor(picture: Image.Image) -> Tensor:
    upright = ImageOps.exif_transpose(picture).convert("RGBA")
    white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, upright).convert("RGB")
    return torch.from_numpy(np.array(flat)).permute(2, 0, 1).contiguous()


__all__ = ["contact_sheet", "load_image", "save_png", "to_pil"]
