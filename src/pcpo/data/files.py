"""Files that are either whole or absent: written beside their place, then renamed over it; and files that last.

What is `durable` has reached the disk when the call returns, so that a power cut cannot take it back: the bytes of a
file by fsync of the file, its name by fsync of its folder.
"""

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

_CHUNK = 1 << 26  # bytes a write; some systems refuse more than 2 GiB at once


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the place of ``path`` when the block ends well.

    A reader sees the old file or the new one, never a part; a block that raises leaves the old file and
    no rest. The parent folder is created. Without ``durable`` there is no fsync: this guards against a
    killed process, not against a power cut.

    Raises RunFolderError when the file system refuses (missing rights, full disk, a folder in the way).
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
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


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes, *, durable: bool = False) -> None:
    """Write ``data`` to ``path`` as a whole (see `atomic_path`)."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: str | os.PathLike[str], text: str, *, durable: bool = False) -> None:
    r"""Write ``text`` as UTF-8 with \n line ends to ``path`` as a whole (see `atomic_path`)."""
    write_bytes_atomic(path, text.encode("utf-8"), durable=durable)


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` as a whole (see `atomic_path`).

    Raises ValueError on NaN and infinities, which JSON does not have, and TypeError on unknown types.
    """
    write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_new_durable(path: Path, data: bytes) -> None:
    """Write a file that does not exist yet; its bytes are on the disk afterwards. Raises OSError.

    Its name is not before `sync_folder` of the folder.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[:_CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was created, renamed or removed in it. Raises OSError."""
    _sync(folder)


def make_folders_durable(folder: Path) -> None:
    """Create a folder with its parents where they are missing, each of them durably. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "atomic_folder",
    "atomic_path",
    "make_folders_durable",
    "sync_folder",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_new_durable",
    "write_text_atomic",
]
