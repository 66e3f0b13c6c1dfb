"""The run's log: one JSON object a line, appended while it trains and read back as typed records.

A line is one event, told apart by its "type" (see `records`). Numbers that are not finite are written as
null, so that every line is plain JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pydantic import ValidationError

from pcpo.data.untrusted import open_regular
from pcpo.errors import RunFolderError
from pcpo.observe.records import RunLog

MAX_BYTES = 1 << 29  # of a log
MAX_LINE = 1 << 24


def plain(value: Any) -> Any:
    """Make a value fit JSON: tensors and arrays become lists, paths text, nan and inf None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, os.PathLike) else value


class EventWriter:
    """Append events to a file, each line in one unbuffered write: a killed run loses at most its last line.

    A line that an earlier process left unfinished at the end of the file is removed when the file is opened. Lines that
    the disk does not take wait in memory and go before the next one; `refused` is then the reason, else None. The
    listener (a tracker) gets every event after it was written.
    """

    def __init__(self, path: str | Path, listener: Callable[[Mapping[str, Any]], object] | None = None) -> None:
        self.path = Path(path)
        self._listener = listener
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _mend_last_line(self.path)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        self._waiting = b""
        self.refused: OSError | None = None

    def write(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Append one event of type `kind` and return it as it was written.

        Raises TypeError when a field is of a type that JSON cannot hold; nothing is written then.
        """
        event = {"type": kind, **plain(fields)}
        self._waiting += json.dumps(event, allow_nan=False).encode("ascii") + b"\n"
        self._flush()
        if self._listener is not None:
            self._listener(event)
        return event

    def sync(self) -> None:
        """Put all events on the disk, so that a power cut does not take them back. Raises OSError."""
        self._flush()
        if self.refused is not None:
            raise self.refused
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; closing twice is allowed. Raises RunFolderError when events are lost."""
        if not self._file.closed:
            self._flush()
            self._file.close()
        if self._waiting:
            raise RunFolderError(
                f"its last events could not be written ({self.refused.strerror if self.refused else 'closed'})",
                where=str(self.path),
                fix="free space, then go on with --resume",
            )

    def _flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]
            self.refused = None
        except OSError as error:
            self.refused = error

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(RunFolderError) if error is not None else nullcontext():  # what came first is what is told
            self.close()


class NoEvents(EventWriter):
    """Keeps nothing: for the processes of a run that leave the log to the main one."""

    def __init__(self) -> None:
        self.refused = None

    def write(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """The event as it would be written."""
        return {"type": kind, **plain(fields)}

    def sync(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def _mend_last_line(path: Path) -> None:
    """Make the file end at a line's end: complete a whole last event, cut a torn one."""
    if not path.exists():
        return
    with open_regular(path, MAX_BYTES) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE))
        data = file.read(MAX_LINE)
    tail = data[data.rfind(b"\n") + 1 :]
    if not tail:
        return
    try:
        _parse(tail)
    except ValueError:
        os.truncate(path, size - len(tail))
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def read_events(path: str | Path) -> RunLog:
    """Read events.jsonl into a RunLog.

    When iterations repeat, the run restarted from an older checkpoint: the last line for an iteration counts,
    and later iterations of the abandoned attempt are dropped. A last line without its newline that cannot be
    parsed was torn by a kill and is skipped. Any other malformed line raises RunFolderError with its number,
    as does a file that cannot be read.
    """
    path = Path(path)
    try:
        with open_regular(path, MAX_BYTES) as file:
            return _read(file, path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(file: BinaryIO, path: Path) -> RunLog:
    log = RunLog()
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE:
                raise ValueError(f"longer than {MAX_LINE >> 20} MiB")
            log.add(_parse(line))
        except ValueError as error:
            if not line.endswith(b"\n") and len(line) <= MAX_LINE and not isinstance(error, ValidationError):
                break
            raise RunFolderError(
                f"malformed event: {_reason(error)}",
                where=f"{path}, line {number}",
                fix="remove that line or restore the file",
            ) from error
    return log


def _unreadable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot be read ({error.strerror or error})", where=str(path), fix="name the folder of a run"
    )


def _parse(line: bytes) -> dict[str, Any]:
    """Parse one line; ValueError unless it is strict JSON in UTF-8 and an object."""
    try:
        event = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(event, dict):
        raise ValueError("not a JSON object")
    return event


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _reason(error: ValueError) -> str:
    """One line for any parse or validation error."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'event'}: {first['msg']}"
    return str(error)
