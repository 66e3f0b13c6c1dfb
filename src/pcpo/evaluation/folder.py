"""A folder of pictures as a set, with its prompts where a metadata.jsonl names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pcpo.data.images import load_image, to_pil
from pcpo.data.prompts import Prompt
from pcpo.data.untrusted import inside, open_regular
from pcpo.errors import EvaluationError, one_line
from pcpo.evaluation.measure import PictureSet
from pcpo.evaluation.sampling import METADATA_FILE

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
MAX_METADATA = 64 << 20  # bytes
SHEET = "sheet.png"  # of `pcpo sample`: pictures of pictures


def read_folder(folder: Path, size: tuple[int, int] | None = None) -> PictureSet:
    """Pictures of a folder, by name; prompts from its metadata.jsonl ({"file_name", "prompt"} a line), if there is one.

    size (height, width): what every picture is brought to, the first picture's if None: cropped in the middle to
    that shape and resized (bicubic). Raises EvaluationError for a folder without pictures or with broken metadata,
    ImageError for a picture that cannot be read.
    """
    listed = _listed(folder)
    names = (
        list(listed)
        if listed
        else sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.name != SHEET
        )
    )
    if not names:
        raise EvaluationError("holds no PNG, JPEG or WebP picture", where=str(folder), fix="check the path")
    images = []
    for name in names:
        image = load_image(folder / name)
        size = size or (image.shape[1], image.shape[2])
        images.append(_fit(image, size))
    prompts = tuple(Prompt(text, rest) for text, rest in listed.values()) if listed else None
    return PictureSet(str(folder), torch.stack(images), prompts)


def _listed(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """File name -> (prompt, the line's other keys) of metadata.jsonl; empty without that file."""
    path = folder / METADATA_FILE
    if not path.is_file():
        return {}
    try:
        with open_regular(path, MAX_METADATA) as file:
            lines = file.read(MAX_METADATA).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot be read ({error})", where=str(path), fix="save it as UTF-8") from error
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            name, prompt = row.pop("file_name"), row.pop("prompt")
            if not isinstance(name, str) or not isinstance(prompt, str):
                raise TypeError("file_name and prompt are texts")
            if not inside(folder, name).is_file():
                raise ValueError(f"no such picture in the folder: {name!r}")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise EvaluationError(
                f"cannot be used ({type(error).__name__}: {one_line(error)})",
                where=f"{path}, line {number}",
                fix='write {"file_name": "0000.png", "prompt": "..."} a line, or remove the file',
            ) from error
        found[name] = (prompt, row)
    return found


def _fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, H, W] cropped in the middle to the shape of `size` and resized to it."""
    height, width = image.shape[1:]
    if (height, width) == size:
        return image
    scale = min(height / size[0], width / size[1])
    tall, wide = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - tall) // 2, (width - wide) // 2
    part = to_pil(image[:, top : top + tall, left : left + wide])
    resized = part.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(*size, 3).permute(2, 0, 1).clone()


__all__ = ["read_folder"]
