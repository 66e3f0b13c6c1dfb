"""Pictures in rows and columns with words beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pcpo.data.images import to_pil

PAD, CAPTION, LINE = 8, 168, 16
INK, PAPER = (23, 32, 44), (255, 255, 255)


def captioned_grid(
    columns: Sequence[Tensor], titles: Sequence[str], captions: Sequence[str], side: int | None = None
) -> Image.Image:
    """Pictures with a title above each column and a caption left of each row.

    columns   one Tensor [R, 3, H, W] uint8 per title
    captions  R texts, wrapped and cut to the height of a row
    side      pictures are enlarged, without smoothing, or reduced to about this many pixels; None: as they are
    """
    font = ImageFont.truetype(str(_font()), 12)
    height, width = columns[0].shape[-2:]
    factor = 1.0 if side is None else max(1, round(side / width)) if side >= width else side / width
    w, h = round(width * factor), round(height * factor)
    resample = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    head = PAD + LINE
    size = (CAPTION + len(titles) * (w + PAD) + PAD, head + len(captions) * (h + PAD) + PAD)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for c, (title, pictures) in enumerate(zip(titles, columns, strict=True)):
        left = CAPTION + c * (w + PAD) + PAD
        pen.text((left, PAD // 2), _fit(title, w, font), fill=INK, font=font)
        for r, picture in enumerate(pictures):
            sheet.paste(to_pil(picture).resize((w, h), resample), (left, head + r * (h + PAD)))
    for r, caption in enumerate(captions):
        rows = textwrap.wrap(caption, 24, max_lines=max(1, h // LINE), placeholder=" ...")
        pen.multiline_text((PAD, head + r * (h + PAD)), "\n".join(rows), fill=INK, font=font)
    return sheet


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text that is too wide, which tells two paths apart better than their beginning."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"


def _font() -> Path:
    """DejaVu Sans, which comes with matplotlib and knows more scripts than Pillow's own font."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


__all__ = ["captioned_grid"]
