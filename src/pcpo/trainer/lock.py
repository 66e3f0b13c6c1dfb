"""One process at a time in a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pcpo.data.files import make_folders_durable
from pcpo.errors import RunFolderError

LOCK = "run.lock"


class RunLock:
    """Holds `folder`/run.lock while a run is in the folder; use it as a context manager.

    The system's lock on the file decides (flock), so the lock of a process that died is free, whatever the file says.
    The file names the holder for people: pid, host, start in seconds since 1970. The folder is created.

    Raises RunFolderError on entry when another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        try:
            make_folders_durable(self.path.parent)
            self._descriptor = _take(self.path)
            holder = {"pid": os.getpid(), "host": platform.node(), "start": round(time.time())}
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(holder).encode("ascii"), 0)
        except OSError as error:
            self._release()
            raise RunFolderError(
                f"cannot be locked ({error.strerror})", where=str(self.path), fix="check permissions and free space"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the lock goes with the process anyway
            self.path.unlink()
        self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def refuse_if_locked(folder: Path) -> None:
    """Raise RunFolderError when another process runs in the folder; changes nothing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        _lock(descriptor, folder / LOCK)
    finally:
        os.close(descriptor)


def _take(path: Path) -> int:
    """A locked descriptor of the file that stands at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except (OSError, RunFolderError):
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it as it left: another process may have made a new one


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunFolderError(
            f"is in use{_holder(descriptor)}", where=str(path.parent), fix="wait for it, or choose another --output"
        ) from None


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1024, 0))
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder["start"]))
        return f" by process {int(holder['pid'])} on {str(holder['host'])[:64]!r} since {began}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return ""  # the holder has not signed it yet
