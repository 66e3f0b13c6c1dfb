"""Many requests to one or several servers: bounded, retried, spread by load, and over by the deadline."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from pcpo.errors import RewardError
from pcpo.rewards.remote.exchange import Fault, Refused, exchange, new_client
from pcpo.rewards.remote.wire import WireError

BACKOFF = 0.25  # seconds: the k-th wait is drawn from 0 .. BACKOFF * 2^k
BROKEN = 5  # failures in a row after which a server is asked only when no other is left
REST = 2.0  # seconds for which it is
READY = 4.0  # seconds for the first word of all servers

T = TypeVar("T")
log = logging.getLogger("pcpo.rewards.remote")


@dataclass(frozen=True)
class Job(Generic[T]):
    """One request: `body()` makes it when its turn comes, `read(reply)` takes the answer or raises WireError.

    refused   the answer that a refusal amounts to; raises it again where it is none. None: every refusal is raised
    """

    body: Callable[[], bytes]
    read: Callable[[bytes], T]
    refused: Callable[[Refused], T] | None = None


@dataclass(frozen=True)
class Failed:
    """Why a job has no answer."""

    reason: str


@dataclass
class _Worker:
    url: str
    outstanding: int = 0
    failures: int = 0
    resting_until: float = 0.0
    turn: int = 0


class Pool:
    """Sends jobs to `urls` and collects the answers, from a thread of its own.

    path         added to every url
    token        sent as a bearer token, never written anywhere
    tries        per job, at most; the second and third wait with exponential back-off and full jitter, or as long
                 as Retry-After says, and go to another server where there is one
    timeout      seconds per try
    deadline     seconds per `run`: what has no answer by then has failed
    concurrency  requests in flight per server; only about twice as many bodies exist at a time

    A job goes to the server with the fewest requests in flight.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        path: str,
        token: str | None = None,
        tries: int = 3,
        timeout: float = 15.0,
        deadline: float = 50.0,
        concurrency: int = 2,
    ) -> None:
        self.path, self.tries, self.timeout, self.deadline = path, tries, timeout, deadline
        self._token = token
        self._workers = [_Worker(url) for url in urls]
        self._slots = len(urls) * concurrency
        self._random = random.Random()  # the run's own random state must not depend on faults
        self._lock = threading.Lock()
        self._stack: contextlib.ExitStack | None = None

    def run(self, jobs: Sequence[Job[T]]) -> list[T | Failed]:
        """Answers in the order of the jobs. Raises RewardError where a server refuses for good."""
        with self._lock:
            future = self._portal().start_task_soon(self._run, list(jobs))
            try:
                return future.result()
            except BaseException:
                future.cancel()
                raise

    def get(self, path: str) -> list[bytes]:
        """What every server replies to GET `path`. Raises RewardError when one does not within a few seconds."""
        with self._lock:
            return self._portal().call(self._get_all, path)

    def close(self) -> None:
        """Close the connections and end the thread; a later `run` starts anew."""
        with self._lock:
            if self._stack is not None:
                self._finalize()
                self._stack = None

    def _portal(self) -> anyio.from_thread.BlockingPortal:
        if self._stack is None:
            self._stack = stack = contextlib.ExitStack()
            self._loop = stack.enter_context(anyio.from_thread.start_blocking_portal(name="pcpo-remote-reward"))
            self._client = new_client(self._token, self._slots)
            stack.callback(self._loop.call, self._client.aclose)
            self._finalize = weakref.finalize(self, stack.close)
        return self._loop

    async def _get_all(self, path: str) -> list[bytes]:
        replies = []
        until = time.monotonic() + READY
        for worker in self._workers:
            where = f"reward server {worker.url}"
            left = max(until - time.monotonic(), 0.1)
            try:
                replies.append(await exchange(self._client, "GET", worker.url + path, None, left, where))
            except Fault as fault:
                raise RewardError(fault.what, where=where, fix="start it, or check the url") from None
        return replies

    async def _run(self, jobs: list[Job[T]]) -> list[T | Failed]:
        results: list[T | Failed] = [Failed(f"deadline of {self.deadline:g} s passed")] * len(jobs)
        refusals: list[RewardError] = []
        queue = iter(enumerate(jobs))
        until = time.monotonic() + self.deadline
        slots = anyio.Semaphore(self._slots)

        async def runner(queue: Iterator[tuple[int, Job[T]]]) -> None:
            try:
                for place, job in queue:
                    results[place] = await self._answer(job, slots, until)
            except RewardError as error:
                refusals.append(error)
                scope.cancel()

        with anyio.move_on_at(anyio.current_time() + self.deadline) as scope:
            async with anyio.create_task_group() as group:
                # twice as many as slots, so that a job that waits to be tried again keeps no server idle
                for _ in range(min(len(jobs), 2 * self._slots)):
                    group.start_soon(runner, queue)
        if refusals:
            raise refusals[0]
        return results

    async def _answer(self, job: Job[T], slots: anyio.Semaphore, until: float) -> T | Failed:
        body = await anyio.to_thread.run_sync(job.body, abandon_on_cancel=True)
        tried: set[str] = set()
        for attempt in range(1, self.tries + 1):
            async with slots:
                worker = self._choose(tried)
                try:
                    return await self._try(worker, job, body)
                except (Fault, WireError) as fault:
                    reason, asked = str(fault), getattr(fault, "retry_after", 0.0)
            tried.add(worker.url)
            wait = max(asked, self._random.uniform(0, BACKOFF * 2**attempt))
            if attempt == self.tries or time.monotonic() + wait >= until:
                break
            await anyio.sleep(wait)
        return Failed(reason)

    async def _try(self, worker: _Worker, job: Job[T], body: bytes) -> T:
        worker.outstanding += 1
        try:
            where = f"reward server {worker.url}"
            reply = await exchange(self._client, "POST", worker.url + self.path, body, self.timeout, where)
            answer = job.read(reply)
        except Refused as refusal:
            if job.refused is None:
                raise
            answer = job.refused(refusal)
        except RewardError:
            worker.failures += 1
            if worker.failures >= BROKEN:
                worker.resting_until = time.monotonic() + REST
            raise
        finally:
            worker.outstanding -= 1
        worker.failures = 0
        return answer

    def _choose(self, tried: set[str]) -> _Worker:
        """Not one that failed this job, not one that fails all, then the least busy, then the least used."""
        now = time.monotonic()
        chosen = min(
            self._workers,
            key=lambda w: (w.url in tried, now < w.resting_until, w.outstanding, w.turn),
        )
        chosen.turn += 1
        return chosen


def require_answers(results: Sequence[Any], what: str, where: str) -> None:
    """Log how many jobs failed and why. Raises RewardError when all did: then the servers are as good as dead."""
    reasons = Counter(result.reason for result in results if isinstance(result, Failed))
    failed = sum(reasons.values())
    if not failed:
        return
    counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    if failed == len(results):
        raise RewardError(
            f"no {what} was answered: {counts}", where=where, fix="look at the server; resume the run when it is back"
        )
    log.warning("%s: %d of %d got no answer and leave their pictures out: %s", where, failed, len(results), counts)


__all__ = ["Failed", "Job", "Pool", "require_answers"]
