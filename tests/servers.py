"""Servers on loopback for tests: the real reward server in a thread, and one that answers with faults."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass

import anyio.from_thread

from pcpo.rewards.base import evaluate
from pcpo.rewards.remote.server import make_app
from pcpo.rewards.remote.serving import listen, make_server
from pcpo.rewards.remote.wire import FORMAT, decode_request, encode_reply

FAULTS = ("500", "429", "reset", "slow", "length", "type", "nan", "large", "redirect")


@contextlib.contextmanager
def serving(reward, name="served", **options):
    """The real server with a reward; yields its url."""
    server = make_server(make_app(reward, name, **options))
    with listen("127.0.0.1", 0) as door:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class Reply:
    """An answer with a status and headers of its own."""

    status: int
    body: bytes
    headers: dict


class Faulty:
    """A reward server of its own making: `answer(path, body)` is what it says, `fault(count)` how it fails to.

    seen     tries by request body     paths  every path asked for     faults  how often each came     busy  seconds
    """

    def __init__(self, answer, fault=lambda number: None, latency=lambda: 0.0):
        self.answer, self.fault, self.latency = answer, fault, latency
        self.seen, self.paths, self.faults, self.busy, self.number = Counter(), Counter(), Counter(), 0.0, 0
        self.lock = threading.Lock()

    async def __call__(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                path = head.split(" ", 2)[1]
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                start = time.monotonic()
                try:
                    if not await self.reply(path, body, writer):
                        break
                finally:
                    self.busy += time.monotonic() - start
        writer.transport.abort()

    async def reply(self, path, body, writer):
        """Answer one request; False when the connection ends with it."""
        with self.lock:
            self.number += 1
            self.paths[path] += 1
            fault = self.fault(self.number) if body else None
            if body:
                self.seen[body] += 1
                self.faults[fault] += 1
        await asyncio.sleep(self.latency())
        true = self.answer(path, body)
        if isinstance(true, Reply):
            headers = {"content-length": len(true.body), **true.headers}
            writer.write(head_of(true.status, **headers) + true.body)
            await writer.drain()
            return True
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return False
        if fault == "slow":
            writer.write(head_of(200, **{"content-length": len(true)}))
            for place in range(len(true)):
                writer.write(true[place : place + 1])
                await writer.drain()
                await asyncio.sleep(0.2)
            return True
        status, said, extra = spoilt(fault, true)
        writer.write(head_of(status, **{"content-length": len(said), **extra}) + said)
        await writer.drain()
        return True


def spoilt(fault, true):
    """Status, body and headers of a wrong reply made from the true one."""
    if fault is None:
        return 200, true, {}
    if fault == "500":
        return 500, b'{"error": {"type": "internal", "message": "no"}}', {}
    if fault == "429":
        return 429, b"{}", {"retry-after": "0"}
    if fault == "redirect":
        return 307, b"", {"location": "/elsewhere"}
    if fault == "large":
        return 200, b" " * 10_000_000 + true, {}
    reply = json.loads(true)
    wrong = {
        "length": [*reply["values"], 1.0],
        "type": [str(value) for value in reply["values"]],
        "nan": [float("nan") for _ in reply["values"]],
    }
    return 200, json.dumps({**reply, "values": wrong[fault]}).encode(), {}


def head_of(status, **headers):
    headers = {"content-type": "application/json", **headers}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def scoring(reward):
    """The `answer` of a true reward server."""

    def answer(path, body):
        if path == "/info":
            return json.dumps({"format": FORMAT}).encode()
        return encode_reply(evaluate(reward, *decode_request(body)))

    return answer


def at_random(share, seed=0, faults=FAULTS):
    """A fault in `share` of every ten requests, in a random order of their coming; the kinds take turns."""
    chance, kinds, waiting = random.Random(seed), itertools.cycle(faults), []

    def fault(number):
        if not waiting:
            waiting.extend(chance.sample(range(10), 10))
        return next(kinds) if waiting.pop() < 10 * share else None

    return fault


@contextlib.contextmanager
def faulty(*servers):
    """Run them in one thread; yields their urls."""
    writers = []
    with anyio.from_thread.start_blocking_portal() as portal:
        running = [portal.call(_start, server, writers) for server in servers]
        try:
            yield [f"http://127.0.0.1:{door.sockets[0].getsockname()[1]}" for door in running]
        finally:
            portal.call(_stop, running, writers)


async def _start(server, writers):
    def connected(reader, writer):
        writers.append(writer)  # here, for a task that is cancelled before it begins never closes its connection
        return server(reader, writer)

    return await asyncio.start_server(connected, "127.0.0.1", 0, limit=2**26)


async def _stop(running, writers):
    for door in running:
        door.close()
    tasks = [task for task in asyncio.all_tasks() if "Faulty.__call__" in repr(task.get_coro())]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for writer in writers:
        writer.transport.abort()
    for _ in range(2):  # what abort() has scheduled closes the sockets
        await asyncio.sleep(0)
