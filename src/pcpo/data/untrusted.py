"""Files that a stranger may have made: regular ones only, and names that do not lead out of their folder."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from pcpo.errors import one_line


def open_regular(path: str | os.PathLike[str], limit: int) -> BinaryIO:
    """Open a regular file of at most `limit` bytes for reading.

    A pipe would block and a device never end. Raises OSError for them, as for a file that is missing or larger.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > limit:
            raise OSError(f"it is larger than {limit >> 20} MiB")
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_json(path: str | os.PathLike[str], limit: int) -> Any:
    """Strict JSON with finite numbers, from a regular file of at most `limit` bytes. Raises OSError and ValueError."""
    with open_regular(path, limit) as file:
        text = file.read(limit).decode("utf-8")
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond all numbers")
    return number


def inside(root: Path, name: str) -> Path:
    """The path of `root`/`name`, every link followed. Raises ValueError when it does not lie within `root`."""
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise ValueError(f"cannot be followed ({one_line(error)})") from error
    if not path.is_relative_to(root.resolve()):
        raise ValueError("lies outside the folder")
    return path


__all__ = ["inside", "open_regular", "read_json"]
