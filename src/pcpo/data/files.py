"""Files that are either whole or absent: written beside their place, then renamed over it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pcpo.errors import RunFolderError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the place of ``path`` when the block ends well.

    A reader sees the old file or the new one, never a part; a block that raises leaves the old file and
    no rest. The parent folder is created. There is no fsync: this guards against a killed process, not
    against a power cut.

    Raises RunFolderError when the file system refuses (missing rights, full disk, a folder in the way).
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise RunFolderError(
            f"cannot be written ({error.strerror or error})",
            where=str(path),
            fix="check the folder's permissions and free space",
        ) from error
    finally:
        with suppress(OSError):  # already renamed, or its folder could not be made
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``, renamed to ``path`` when the block ends well.

    A block that raises leaves nothing. Raises RunFolderError when ``path`` exists, before the block is entered, or
    when the file system refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        if path.exists():
            raise RunFolderError("exists already", where=str(path), fix="choose another --output")
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise RunFolderError(
            f"cannot be written ({error.strerror or error})",
            where=str(path),
            fix="check the folder's permissions and free space",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # already renamed, or its folder could not be made


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` as a whole (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    r"""Write ``text`` as UTF-8 with \n line ends to ``path`` as a whole (see `atomic_path`)."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` as a whole (see `atomic_path`).

    Raises ValueError on NaN and infinities, which JSON does not have, and TypeError on unknown types.
    """
    write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


__all__ = ["atomic_folder", "atomic_path", "write_bytes_atomic", "write_json_atomic", "write_text_atomic"]
