"""Faults at will: processes that are killed, disks that refuse, power cuts."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pathlib
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pcpo.errors import Interrupted, PCPOError

# The calls by which the checkpoint protocol changes a disk.
CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir")


@contextlib.contextmanager
def watched(before: Callable[..., Any]) -> Iterator[None]:
    """Inside, `before(name, call, args, kwargs)` stands in for each of `CALLS`; it makes the call itself, or not."""
    real = {name: getattr(os, name) for name in CALLS}
    accessor = getattr(pathlib, "_normal_accessor", None)  # Python 3.10's pathlib keeps the calls there
    for name, call in real.items():
        stand_in = partial(_stand_in, before, name, call)
        setattr(os, name, stand_in)
        if hasattr(accessor, name):
            setattr(accessor, name, stand_in)
    try:
        yield
    finally:
        for name, call in real.items():
            setattr(os, name, call)
            if hasattr(accessor, name):
                delattr(accessor, name)


def _stand_in(before: Callable[..., Any], name: str, call: Any, *args: Any, **kwargs: Any) -> Any:
    return before(name, call, args, kwargs)


def count_calls(work: Callable[[], object]) -> list[str]:
    """Names of the calls that `work` makes, in order."""
    names: list[str] = []

    def note(name, call, args, kwargs):
        names.append(name)
        return call(*args, **kwargs)

    with watched(note):
        work()
    return names


@contextlib.contextmanager
def killed_at(place: int, half: bool = False) -> Iterator[None]:
    """Kill this process right before its call number `place`; with `half`, after half of that write."""
    numbers = itertools.count()

    def maybe_kill(name, call, args, kwargs):
        if next(numbers) == place:
            if half:
                call(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    with watched(maybe_kill):
        yield


@contextlib.contextmanager
def refused_at(place: int, code: int) -> Iterator[None]:
    """The call number `place` fails with errno `code`, and so does whatever would write after it.

    Removing still works, as on a full disk. A close does not fail, but releases the file.
    """
    numbers = itertools.count()

    def maybe_refuse(name, call, args, kwargs):
        creates = name != "open" or bool(args[1] & os.O_CREAT)
        first = (here := next(numbers)) == place
        if first or (here > place and name in ("mkdir", "open", "write", "fsync") and creates):
            if name == "close":
                call(*args, **kwargs)
            if name not in ("unlink", "rmdir") or first:
                raise OSError(code, os.strerror(code))
        return call(*args, **kwargs)

    with watched(maybe_refuse):
        yield


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a child and return its pid. Its exit code is that of the command line; 99 after a failure."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():  # torch has idle threads, about which Python 3.12 warns
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        code = 0
    except (PCPOError, Interrupted) as error:
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Recorder:
    """Records what a process does to a disk, as inodes, names and writes, for `crash_states`.

    Log entries: ("mkdir" | "create", folder, name, inode), ("write", inode, data), ("fsync", inode),
    ("rename", folder, old, new), ("unlink" | "rmdir", folder, name); a folder is the inode of a directory.
    """

    def __init__(self, root: Path) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.ids: dict[tuple[int, int], int] = {}
        self.open: dict[int, int] = {}
        self.root = self._id(root.stat())

    def _id(self, stat: os.stat_result) -> int:
        # an inode number comes back after its file was removed, so a new name gets a new number of ours
        return self.ids.setdefault((stat.st_dev, stat.st_ino), len(self.ids))

    def _new(self, stat: os.stat_result) -> int:
        self.ids.pop((stat.st_dev, stat.st_ino), None)
        number = self.ids[stat.st_dev, stat.st_ino] = 1 + max(self.ids.values(), default=0)
        return number

    def _place(self, path: Any, folder: int | None) -> tuple[int, str]:
        if folder is not None:
            return self.open[folder], os.fspath(path)
        path = Path(path)
        return self._id(path.parent.stat()), path.name

    def __call__(self, name: str, call: Any, args: Any, kwargs: Any) -> Any:
        if name == "write":
            done = call(*args)
            self.log.append(("write", self.open[args[0]], bytes(args[1][:done])))
            return done
        if name == "fsync":
            self.log.append(("fsync", self.open[args[0]]))
            return call(*args)
        if name == "close":
            return call(*args)
        place = self._place(args[0], kwargs.get("dir_fd"))
        existed = os.path.lexists(args[0]) if kwargs.get("dir_fd") is None else True
        done = call(*args, **kwargs)
        if name == "open":
            if existed:
                self.open[done] = self._id(os.fstat(done))
            else:
                self.open[done] = self._new(os.fstat(done))
                self.log.append(("create", *place, self.open[done]))
        elif name == "mkdir":
            self.log.append(("mkdir", *place, self._new(Path(args[0]).stat())))
        elif name == "rename":
            self.log.append(("rename", *place, Path(args[1]).name))
        else:
            self.log.append((name, *place))
        return done


Tree = dict[str, bytes | None]  # path below the root -> bytes of a file, None for a folder
Numbered = tuple[int, tuple[Any, ...]]  # a log entry with its place


def crash_states(recorder: Recorder, length: int) -> Iterator[Tree]:
    """Every state in which a power cut after `length` entries may leave the disk.

    What was synced is there. Of the names changed in a folder since its last sync any part may be there, in any order
    that keeps the order of changes to one name. A file that was not synced may be empty, half written, full of zeros,
    or whole.
    """
    data: dict[int, bytes] = {}
    pending: dict[int, list[Numbered]] = {}
    durable: list[Numbered] = []
    unsynced: set[int] = set()
    kinds: dict[int, str] = {recorder.root: "mkdir"}
    names: dict[tuple[int, str], int] = {}
    removed: dict[int, int] = {}
    for number, entry in enumerate(recorder.log[:length]):
        kind = entry[0]
        if kind == "write":
            data[entry[1]] = data.get(entry[1], b"") + entry[2]
            unsynced.add(entry[1])
        elif kind == "fsync":
            unsynced.discard(entry[1])
            synced = pending.pop(entry[1], [])
            durable += synced
            for place, _ in synced:
                pending.pop(removed.get(place, -1), None)  # what changed in a folder that is gone
        else:
            if kind in ("mkdir", "create"):
                kinds[entry[3]] = kind
                data.setdefault(entry[3], b"")
                names[entry[1], entry[2]] = entry[3]
            elif kind == "rename":
                names[entry[1], entry[3]] = names.pop((entry[1], entry[2]))
            else:
                removed[number] = names.pop((entry[1], entry[2]))
            pending.setdefault(entry[1], []).append((number, entry))
    per_folder = [list(_parts(entries)) for entries in pending.values()]
    contents = [[(inode, variant) for variant in _variants(data[inode])] for inode in sorted(unsynced)]
    for parts in itertools.product(*per_folder):
        for variants in itertools.product(*contents):
            entries = sorted(itertools.chain(durable, *parts))
            yield _tree(recorder.root, [entry for _, entry in entries], kinds, {**data, **dict(variants)})


def _parts(entries: list[Numbered]) -> Iterator[list[Numbered]]:
    """Subsets of a folder's pending changes that hold, for each name, the earlier changes to it too."""
    for chosen in itertools.product((True, False), repeat=len(entries)):
        missing: set[str] = set()
        for (_, entry), taken in zip(entries, chosen, strict=True):
            names = {entry[2], entry[3]} if entry[0] == "rename" else {entry[2]}
            if taken and names & missing:
                break
            if not taken:
                missing |= names
        else:
            yield [entry for entry, taken in zip(entries, chosen, strict=True) if taken]


def _variants(data: bytes) -> list[bytes]:
    return [b"", data[: len(data) // 2], bytes(len(data)), data]


def _tree(root: int, entries: list[tuple[Any, ...]], kinds: dict[int, str], data: dict[int, bytes]) -> Tree:
    folders: dict[int, dict[str, int]] = {}
    for entry in entries:
        names = folders.setdefault(entry[1], {})
        if entry[0] in ("mkdir", "create"):
            names[entry[2]] = entry[3]
        elif entry[0] == "rename":
            names[entry[3]] = names.pop(entry[2])
        else:
            names.pop(entry[2], None)
    tree: Tree = {}

    def walk(inode: int, prefix: str) -> None:
        for name, child in folders.get(inode, {}).items():
            is_folder = kinds[child] == "mkdir"
            tree[prefix + name] = None if is_folder else data[child]
            if is_folder:
                walk(child, f"{prefix}{name}/")

    walk(root, "")
    return tree


def plant(tree: Tree, root: Path) -> None:
    """Make a tree real."""
    root.mkdir()
    for name, content in tree.items():
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)


REFUSALS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
