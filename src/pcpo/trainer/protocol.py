"""The checkpoint folder: complete and verified, or it does not count.

Writing folder N, in this order; each line is on the disk before the next begins:

1. files of N.tmp, one after another, and a manifest with the size and SHA-256 of each
2. the names in N.tmp (fsync of the folder)
3. N.tmp renamed to N, and that name (fsync of the parent)

Only then may an older checkpoint go: it is renamed to M.old, durably, before its files are removed. So a folder whose
name is a number was complete at one moment and has not been touched since. Whatever else is there (N.tmp, M.old) was
left by a process that died, and is removed when the next one begins.

One process writes: in a distributed run, rank 0, with what the others have handed to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pcpo.data.files import make_folders_durable, sync_folder, write_new_durable
from pcpo.errors import CheckpointError, one_line

FORMAT = 2
MANIFEST = "manifest.json"
TEMPORARY, RETIRED, DAMAGED = ".tmp", ".old", ".bad"
_MAX_MANIFEST = 1 << 20
_NAME = re.compile(r"[a-z]+\.(json|safetensors)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """What a file of the checkpoint must be: bytes and SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Head of a checkpoint: iteration, SHA-256 of the settings that it was made with, and its files by name."""

    iteration: int
    config: str
    files: dict[str, Entry]

    def to_bytes(self) -> bytes:
        """The one spelling of this manifest, which carries its own hash."""
        body = {**asdict(self), "format": FORMAT}
        return _json({**body, "sha256": digest(_json(body))})


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def list_folders(parent: Path) -> list[Path]:
    """Folders that were finished once, whether they are intact or not, oldest first."""
    if not parent.is_dir():
        return []
    return sorted((p for p in parent.iterdir() if p.name.isdecimal() and p.is_dir()), key=lambda p: int(p.name))


def write(folder: Path, iteration: int, config: str, parts: Mapping[str, Callable[[], bytes]]) -> None:
    """Write a checkpoint folder that does not exist yet; `parts` give the bytes of each file, asked one by one.

    Raises OSError; then nothing is left of it, unless the very last fsync failed.
    """
    temporary = folder.with_name(folder.name + TEMPORARY)
    make_folders_durable(folder.parent)
    _remove(temporary)
    try:
        temporary.mkdir()
        files = {}
        for name, make in parts.items():
            data = make()
            write_new_durable(temporary / name, data)
            files[name] = Entry(len(data), digest(data))
            del data  # or two parts are in memory at once
        write_new_durable(temporary / MANIFEST, Manifest(iteration, config, files).to_bytes())
        sync_folder(temporary)
        temporary.rename(folder)
    finally:
        with suppress(OSError):  # the disk that refused the write may refuse this too; `sweep` comes back to it
            _remove(temporary)
    sync_folder(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """The manifest, checked in itself. Raises CheckpointError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"has no manifest: it is incomplete, or of a version before format {FORMAT}", where=str(folder), fix=_FIX
        )
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST)
        manifest = _parse(json.loads(data.decode("ascii")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"its manifest cannot be read ({one_line(error)})", where=str(folder), fix=_FIX) from None
    if manifest.to_bytes() != data:
        raise CheckpointError("its manifest is damaged", where=str(folder), fix=_FIX)
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint of which every byte is as it was written. Raises CheckpointError."""
    manifest = read_manifest(folder)
    for name in manifest.files:
        verify_file(folder, manifest, name)
    return manifest


def verify_file(folder: Path, manifest: Manifest, name: str) -> Path:
    """The path of one file of a checkpoint, checked. Raises CheckpointError."""
    path = folder / name
    try:
        entry, found = manifest.files[name], hashlib.sha256()
        if path.stat().st_size != entry.size:
            raise CheckpointError(f"{name} has {path.stat().st_size} bytes, not {entry.size}", where=str(folder))
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    except KeyError:
        raise CheckpointError(f"has no {name}", where=str(folder)) from None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read ({error.strerror})", where=str(folder), fix=_FIX) from error
    if found.hexdigest() != entry.sha256:
        raise CheckpointError(f"{name} is damaged: its SHA-256 is another", where=str(folder), fix=_FIX)
    return path


def retire(parent: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints. Call it only when the newest one is durable. Raises OSError.

    One whose manifest or sizes are wrong neither counts nor goes: it may be all that is left of something.
    """
    good = [folder for folder in list_folders(parent) if _looks_whole(folder)]
    for folder in good[:-keep]:
        doomed = folder.with_name(folder.name + RETIRED)
        _remove(doomed)
        folder.rename(doomed)
        sync_folder(parent)
        _remove(doomed)


def put_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint that is in the way of a new one; it is kept. Raises OSError."""
    count, aside = 1, folder.with_name(folder.name + DAMAGED)
    while aside.exists():
        count += 1
        aside = folder.with_name(f"{folder.name}{DAMAGED}{count}")
    folder.rename(aside)
    return aside


def sweep(parent: Path) -> None:
    """Remove what a process that died has left: temporary and retired folders. Raises OSError."""
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        if path.suffix in (TEMPORARY, RETIRED) and path.stem.isdecimal():
            _remove(path)


_FIX = "an older checkpoint is used if there is one"


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode("ascii") + b"\n"


def _parse(data: Any) -> Manifest:
    """A Manifest from JSON; ValueError, KeyError or TypeError when it is not one."""
    if not isinstance(data, dict) or not isinstance(data["files"], dict) or type(data["iteration"]) is not int:
        raise TypeError("not a manifest")
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r}, this version reads {FORMAT}")
    files = {}
    for name, entry in data["files"].items():
        # a name is looked up in the folder, so it must not lead out of it
        if not _NAME.fullmatch(name) or name == MANIFEST or not _SHA256.fullmatch(entry["sha256"]):
            raise ValueError(f"file {name[:80]!r}")
        files[name] = Entry(entry["size"], entry["sha256"])
    return Manifest(data["iteration"], data["config"], files)


def _looks_whole(folder: Path) -> bool:
    try:
        entries = read_manifest(folder).files.items()
        return all((folder / name).stat().st_size == entry.size for name, entry in entries)
    except (CheckpointError, OSError):
        return False


def _remove(folder: Path) -> None:
    if os.path.lexists(folder):
        shutil.rmtree(folder)
