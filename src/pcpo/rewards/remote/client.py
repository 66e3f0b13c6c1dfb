"""The reward `http`: pictures go to a reward server (`pcpo rewards serve`), their values come back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pcpo.errors import RewardError
from pcpo.rewards.remote.exchange import check_url, read_token
from pcpo.rewards.remote.pool import Failed, Job, Pool, require_answers
from pcpo.rewards.remote.wire import FORMAT, MAX_PICTURES, decode_reply, encode_request
from pcpo.types import RewardResult

WHERE = "reward http"


class RemoteReward:
    """A reward that runs elsewhere, behind one or several servers that speak the wire format.

    url          address of a server, or a list of them: batches are spread over all
    token_env    environment variable that holds the servers' token; null: no token
    batch_size   pictures per request
    concurrency  requests in flight per server
    tries        per batch, at most, with exponential back-off and full jitter
    timeout      seconds per try
    deadline     seconds per call: a call never takes longer

    A batch that no try got an answer for leaves its pictures out (valid False). Raises RewardError when no batch was
    answered, when a server refuses for good (token, size, format), and when replies do not name the same parts.
    Pictures, prompts and metadata leave this process, to the url that you name.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        token_env: str | None = None,
        batch_size: int = 16,
        concurrency: int = 2,
        tries: int = 3,
        timeout: float = 15.0,
        deadline: float = 50.0,
    ) -> None:
        check_counts(WHERE, batch_size=batch_size, concurrency=concurrency, tries=tries)
        check_seconds(WHERE, timeout=timeout, deadline=deadline)
        if batch_size > MAX_PICTURES:
            raise RewardError(f"batch_size {batch_size}", where=WHERE, fix=f"at most {MAX_PICTURES}")
        self.batch_size, self.deadline = batch_size, deadline
        self._pool = Pool(
            check_urls(url, WHERE),
            path="/score",
            token=read_token(token_env, WHERE),
            tries=tries,
            timeout=timeout,
            deadline=deadline,
            concurrency=concurrency,
        )

    def ready(self) -> None:
        """Ask every server, for a few seconds, whether it is one. Raises RewardError naming the one that is not."""
        for reply in self._pool.get("/info"):
            try:
                spoken = json.loads(reply)["format"]
            except (ValueError, KeyError, TypeError, RecursionError):
                spoken = None
            if spoken != FORMAT:
                raise RewardError("answers, but is no reward server of this version", where=WHERE, fix="check the url")

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> RewardResult:
        """Values of B pictures; see the class for what is left out and what is raised."""
        starts = range(0, len(images), self.batch_size)
        rows = [slice(start, min(start + self.batch_size, len(images))) for start in starts]
        jobs = [
            Job(
                partial(encode_request, images[part], prompts[part], metadata[part]),
                partial(decode_reply, size=part.stop - part.start),
            )
            for part in rows
        ]
        results = self._pool.run(jobs)
        require_answers(results, "batch", WHERE)
        answered = [result for result in results if not isinstance(result, Failed)]
        names = answered[0].info.keys()
        if any(result.info.keys() != names for result in answered):
            raise RewardError("replies name different parts", where=WHERE, fix="let all servers serve one reward")
        total = RewardResult(
            torch.zeros(len(images)),
            torch.zeros(len(images), dtype=torch.bool),
            {name: torch.zeros(len(images)) for name in names},
        )
        for part, result in zip(rows, results, strict=True):
            if not isinstance(result, Failed):
                total.values[part], total.valid[part] = result.values, result.valid
                for name in names:
                    total.info[name][part] = result.info[name]
        return total


def check_urls(url: Any, where: str) -> list[str]:
    """One address or a list of distinct ones, checked."""
    urls = [check_url(one, where) for one in (url if isinstance(url, list | tuple) else [url])]
    if not urls or len(set(urls)) < len(urls):
        raise RewardError("needs one url, or several that differ", where=where, fix="url=http://127.0.0.1:8800")
    return urls


def check_counts(where: str, **counts: Any) -> None:
    """Raise RewardError unless each is a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RewardError(f"{name} {value!r}", where=where, fix="use a whole number of at least 1")


def check_seconds(where: str, **seconds: Any) -> None:
    """Raise RewardError unless each is a number above 0, at most a day."""
    for name, value in seconds.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 86400:
            raise RewardError(f"{name} {value!r}", where=where, fix="use seconds above 0")


__all__ = ["RemoteReward"]
