"""Who runs which cell: files that are created once, so any number of processes and machines share a study's folder.

The n-th claim on a cell is CELL.n.json, made with O_CREAT | O_EXCL: of all who try, one succeeds. The highest number
owns the cell. A claim is free to be followed by the next number once it was released, its process is dead (same
machine) or its heartbeat is old (another machine). Claims are never deleted: a number could not be taken twice.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from pcpo.data.files import write_json_atomic
from pcpo.data.untrusted import read_json
from pcpo.errors import RunFolderError

HEARTBEAT = 20.0
STALE_AFTER = 300.0
MAX_BYTES = 1 << 20  # of a record


def machine() -> str:
    """Where a process id means something: the host, and on Linux its boot and process namespace (containers)."""
    parts = [platform.node()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8])
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    except OSError:
        return parts[0]
    return "/".join(parts)


class ClaimLost(Exception):
    """Another runner has taken over the cell that this one was running."""


@dataclass
class Claim:
    """A cell that this process owns. Used as a context manager it keeps a heartbeat, and is released at the end.

    Another runner takes the cell over when this process was held up for longer than `STALE_AFTER`. `check`, called
    between the steps of the work, ends it then, so that two never go on with one cell.
    """

    path: Path
    cell: str
    number: int
    record: dict[str, Any]
    every: float = HEARTBEAT
    lost: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def deaths(self) -> int:
        """Owners in a row, up to this one, that died without getting the cell any further."""
        return int(self.record["deaths"])

    def beat(self) -> None:
        """Say that this process is alive; notice when the cell has a newer owner."""
        if _path(self.path.parent, self.cell, self.number + 1).exists():
            self.lost = True
        else:
            self.record["heartbeat"] = time.time()
            write_json_atomic(self.path, self.record)

    def check(self) -> None:
        """Raise ClaimLost when another runner has taken the cell over."""
        if self.lost:
            raise ClaimLost(self.cell)

    def __enter__(self) -> Claim:
        self._thread = threading.Thread(target=self._keep, name=f"claim {self.cell}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if not self.lost:
            write_json_atomic(self.path, {**self.record, "heartbeat": time.time(), "released": True})

    def _keep(self) -> None:
        while not self._stop.wait(self.every):
            try:
                self.beat()
            except RunFolderError:
                continue  # a shared file system may be away for a moment; the next beat tells
            if self.lost:
                return


def take(
    folder: Path,
    cell: str,
    shard: str,
    *,
    progress: int = 0,
    every: float = HEARTBEAT,
    stale: float = STALE_AFTER,
) -> Claim | None:
    """Claim a cell; None when another process has it. Raises RunFolderError when the folder cannot be written.

    progress: how far the cell is now. The claim's `deaths` counts the owners that died since it was last less far.
    """
    number = newest(folder, cell)
    if number is not None and not is_free(_path(folder, cell, number), stale):
        return None
    number = 0 if number is None else number + 1
    path, now = _path(folder, cell, number), time.time()
    record = {
        "cell": cell,
        "shard": shard,
        "progress": progress,
        "deaths": _deaths(folder, cell, number, progress),
        "machine": machine(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "claimed": now,
        "heartbeat": now,
        "released": False,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    except OSError as error:
        raise RunFolderError(
            f"cannot be written ({error.strerror})", where=str(folder), fix="check the folder's permissions"
        ) from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
    return Claim(path, cell, number, record, every)


def _deaths(folder: Path, cell: str, number: int, progress: int) -> int:
    """How many owners in a row before claim `number` never released a cell that was as far as now when they took it."""
    before = read(_path(folder, cell, number - 1)) or {}
    if before.get("released") or before.get("progress") != progress:
        return 0
    deaths = before.get("deaths")
    return deaths + 1 if isinstance(deaths, int) else 1


def newest(folder: Path, cell: str) -> int | None:
    """Number of the newest claim on a cell; None when there is none."""
    if not _path(folder, cell, 0).exists():
        return None
    number = 0
    while _path(folder, cell, number + 1).exists():
        number += 1
    return number


def read(path: Path) -> dict[str, Any] | None:
    """A claim's record; None while it is being written, or when its writer died in the middle of it."""
    try:
        record = read_json(path, MAX_BYTES)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def is_free(path: Path, stale: float = STALE_AFTER) -> bool:
    """Whether the cell of this claim (its newest) may be taken: released, its process dead, or silent for `stale` s."""
    record = read(path) or {}
    try:
        if record.get("released"):
            return True
        if record.get("machine") == machine():
            return not _alive(int(record["pid"]), float(record["process_started"]))
        return time.time() - float(record["heartbeat"]) > stale
    except (KeyError, TypeError, ValueError, OverflowError):  # being written, or damaged: its file's age decides
        return time.time() - path.stat().st_mtime > stale


def owner(folder: Path, cell: str) -> dict[str, Any] | None:
    """The record of the process that is running a cell; None when nobody is."""
    number = newest(folder, cell)
    if number is None or is_free(_path(folder, cell, number)):
        return None
    return read(_path(folder, cell, number))


def _path(folder: Path, cell: str, number: int) -> Path:
    return folder / f"{cell}.{number}.json"


def _alive(pid: int, started: float) -> bool:
    """Whether the process that had this id when it started then is still there (ids are used again)."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 2
    except psutil.Error:
        return False
