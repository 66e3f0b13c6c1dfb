"""A process that has the library loaded and runs each job in a fork of its own: limited, timed and watched.

The test's side is `Worker`; `python -m security.worker` is the other. They speak one JSON object a line.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    kind      "ok", the name of the exception, "Timeout", or "Killed"
    typed     whether the exception is one of ours
    seconds   CPU time      mib   growth of the peak resident memory
    text      the result or the message; out: what was printed
    touched   (event, path) of every file that was opened, made, renamed or removed: "read" or "write"
    """

    kind: str
    typed: bool = False
    text: str = ""
    seconds: float = 0.0
    mib: float = 0.0
    out: str = ""
    touched: list[tuple[str, str]] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)


class Worker:
    """Jobs in a preloaded process. `run(job, *arguments)` -> Outcome; the jobs are in `security.jobs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Worker:
        paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "security.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def run(self, job: str, *arguments: Any, mib: int = 2048, seconds: float = 30.0) -> Outcome:
        """Run a job with `mib` more address space than the process has, for at most `seconds` of the wall's clock."""
        assert self.process.stdin and self.process.stdout
        order = {"job": job, "arguments": [str(a) for a in arguments], "mib": mib, "seconds": seconds}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Outcome(**{**answer, "touched": [tuple(pair) for pair in answer.get("touched", [])]})


def serve() -> None:
    """Answer orders until the input ends."""
    from security import jobs

    jobs.preload()
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is not a reply
    for line in sys.stdin.buffer:
        replies.write(json.dumps(_in_a_fork(jobs.JOBS, json.loads(line))).encode() + b"\n")


def _in_a_fork(known: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            _child(known[order["job"]], order, write)
        finally:
            os._exit(70)
    os.close(write)
    said, end, late = b"", time.monotonic() + order["seconds"], False
    while not said.endswith(b"\n"):
        late = not select.select([read], [], [], max(0.0, end - time.monotonic()))[0]
        part = b"" if late else os.read(read, 1 << 16)
        if not part:
            break
        said += part
    if late:
        os.kill(child, signal.SIGKILL)
    os.close(read)
    usage = os.wait4(child, 0)[2]
    if not said.endswith(b"\n"):
        return {"kind": "Timeout" if late else "Killed", "seconds": usage.ru_utime + usage.ru_stime}
    answer = json.loads(said)
    growth = usage.ru_maxrss * 1024 / MIB - answer.pop("before")
    return {**answer, "seconds": usage.ru_utime + usage.ru_stime, "mib": round(max(growth, 0.0), 1)}


def _child(job: Any, order: dict[str, Any], pipe: int) -> None:
    from pcpo.errors import PCPOError

    pages = Path("/proc/self/statm").read_text("ascii").split()
    size, resident = (int(count) * resource.getpagesize() for count in pages[:2])
    resource.setrlimit(resource.RLIMIT_AS, (size + order["mib"] * MIB,) * 2)
    out = os.memfd_create("out")
    os.dup2(out, 1)
    os.dup2(out, 2)
    touched: list[tuple[str, str]] = []
    dialled: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching:
            note(event, arguments, touched, dialled)

    sys.addaudithook(hook)
    answer: dict[str, Any] = {"kind": "ok", "typed": False}
    try:
        answer["text"] = str(job(*order["arguments"]))[:2000]
    except BaseException as error:
        answer = {"kind": type(error).__name__, "typed": isinstance(error, PCPOError), "text": str(error)[:2000]}
    watching = False
    sys.stdout.flush()
    sys.stderr.flush()
    size = os.lseek(out, 0, os.SEEK_END)
    answer |= {"out": os.pread(out, min(size, 1 << 20), 0).decode("utf-8", "replace")}
    answer |= {"touched": touched, "dialled": dialled, "before": resident / MIB}
    with os.fdopen(pipe, "wb") as file:
        file.write(json.dumps(answer).encode("ascii") + b"\n")
    os._exit(0)


WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


def note(event: str, arguments: tuple[Any, ...], touched: list[tuple[str, str]], dialled: list[str]) -> None:
    """Take down an audit event that concerns a file or an address."""
    if event == "open" and not isinstance(arguments[0], int):
        path, mode, flags = arguments
        access = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or any(c in (mode or "") for c in "wax+")
        touched.append(("write" if access else "read", _whole(path)))
    elif event in WRITES:
        touched.extend(("write", _whole(part)) for part in arguments[:2] if isinstance(part, (str, bytes)))
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        dialled.append(f"{event} {arguments[1]!r}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect"):
        dialled.append(f"{event} {arguments[0]!r}")


def _whole(path: Any) -> str:
    return str(Path(os.path.realpath(os.fsdecode(path))))


if __name__ == "__main__":
    serve()
