"""The files of a model folder, looked at before a library reads them."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path

from pcpo.data.untrusted import open_regular
from pcpo.errors import ModelError, one_line

MAX_TEXT = 64 << 20  # of a configuration, a vocabulary, an index; the largest tokenizers have 35 MB
MAX_HEADER = 100_000_000  # what the safetensors library allows
WEIGHTS, INDEX = ".safetensors", ".safetensors.index.json"


def check_files(folders: Iterable[Path]) -> None:
    """Look at the files directly in these folders. Raises ModelError for one that must not be read.

    Refused are what is no regular file (a pipe, a device, a broken link), texts over 64 MiB, safetensors with a header
    longer than the file, and an index that names weights in other folders. A link to a file elsewhere is allowed: the
    hub's cache is made of them. Weights in other formats are left alone, for they are never read.
    """
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if not path.is_dir():
                _check(path)


def _check(path: Path) -> None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if path.name.endswith(INDEX):
            _check_index(path)
        elif path.suffix == WEIGHTS:
            _check_weights(path, status.st_size)
        elif path.suffix in (".json", ".txt", ".model") and status.st_size > MAX_TEXT:
            raise OSError(f"it is larger than {MAX_TEXT >> 20} MiB")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"cannot be used ({getattr(error, 'strerror', None) or one_line(error)})",
            where=str(path),
            fix="save or download the model again",
        ) from None


def _check_index(path: Path) -> None:
    with open_regular(path, MAX_TEXT) as file:
        data = json.loads(file.read(MAX_TEXT))
    files = data.get("weight_map") if isinstance(data, dict) else None
    names = files.values() if isinstance(files, dict) else [None]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(WEIGHTS):
            raise ValueError(f"it names the weights {str(name)[:80]!r}, which is no safetensors file beside it")


def _check_weights(path: Path, size: int) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
        raise ValueError("it is not a safetensors file")


__all__ = ["check_files"]
