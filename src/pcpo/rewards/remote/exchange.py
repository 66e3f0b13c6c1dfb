"""One HTTP exchange that trusts the other side with nothing: no redirects, no proxies, a capped JSON reply."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx

from pcpo.errors import RewardError, one_line
from pcpo.rewards.remote.wire import MAX_REPLY

AGAIN = {408, 425, 429}  # with every 5xx: the next try may succeed
MAX_ERROR = 4096  # bytes read of a refusal's text


class Fault(RewardError):
    """A try that failed, and may succeed if repeated. `retry_after`: seconds that the server asks to wait."""

    def __init__(self, what: str, retry_after: float = 0.0) -> None:
        super().__init__(what)
        self.retry_after = retry_after


class Refused(RewardError):
    """A refusal that repeating does not change. `status`: of HTTP; `error`: what the reply's "error" holds, or {}."""

    def __init__(self, status: int, error: Mapping[str, Any], said: str, where: str) -> None:
        super().__init__(
            f"refused with HTTP {status}{f': {said}' if said else ''}",
            where=where,
            fix="check the url, the token and the options",
        )
        self.status, self.error = status, error


def new_client(token: str | None, connections: int) -> httpx.AsyncClient:
    """A client that keeps connections open and takes nothing from the environment (proxies, netrc, certificates)."""
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(headers=headers, limits=limits, timeout=None, follow_redirects=False, trust_env=False)


async def exchange(
    client: httpx.AsyncClient, method: str, url: str, body: bytes | None, seconds: float, where: str
) -> bytes:
    """The JSON bytes that the server replies within `seconds`, all of it counted.

    Raises Fault for what another try may mend (no connection, silence, 408, 425, 429, 5xx, a redirect, a reply that is
    not JSON or larger than MAX_REPLY), and Refused for a refusal that will not change (any other 4xx).
    """
    headers = {"content-type": "application/json"} if body is not None else {}
    try:
        with anyio.fail_after(seconds):
            async with client.stream(method, url, content=body, headers=headers) as response:
                await _check_status(response, where)
                return await _read(response)
    except TimeoutError:
        raise Fault(f"no whole reply in {seconds:.3g} s") from None
    except httpx.ConnectError:
        raise Fault("cannot connect") from None
    except (httpx.HTTPError, httpx.StreamError, OSError) as error:
        raise Fault(f"connection broke ({type(error).__name__}: {one_line(error)})") from None


async def _check_status(response: httpx.Response, where: str) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in AGAIN or status >= 500:
        raise Fault(f"HTTP {status}", _seconds(response.headers.get("retry-after", "")))
    if status < 400:
        raise Fault(f"HTTP {status} instead of a reply; redirects are not followed")
    error = _error(await _start_of(response))
    said = " ".join(str(error.get("message", "")).split())[:200]
    secret = response.request.headers.get("authorization", "").removeprefix("Bearer ")
    if secret:  # some endpoints repeat the key that they refuse
        said = said.replace(secret, "***")
    raise Refused(status, error, said, where)


async def _read(response: httpx.Response) -> bytes:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Fault(f"reply of type {kind[:60] or 'unknown'!r} instead of JSON")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Fault("reply is compressed")
    body = bytearray()
    size = int(response.headers.get("content-length", 0))
    if size <= MAX_REPLY:
        async for part in response.aiter_raw():
            body += part
            if len(body) > MAX_REPLY:
                break
    if max(size, len(body)) > MAX_REPLY:
        raise Fault(f"reply over {MAX_REPLY} bytes")
    return bytes(body)


async def _start_of(response: httpx.Response) -> bytes:
    body = b""
    async for part in response.aiter_raw():
        body += part
        if len(body) >= MAX_ERROR:
            break
    return body[:MAX_ERROR]


def _error(body: bytes) -> dict[str, Any]:
    """What a typed refusal holds, {"error": {"message": ...}}; nothing for any other text."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def _seconds(text: str) -> float:
    """Retry-After in seconds; its date form is ignored."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0.0


def check_url(url: str, where: str) -> str:
    """An http(s) address without a trailing slash. Raises RewardError for anything else, and for a password in it."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and url.isprintable()
    except (ValueError, AttributeError, TypeError):
        good = False
    if not good or " " in url:
        raise RewardError(f"url {str(url)[:200]!r} is not an address", where=where, fix="http://127.0.0.1:8800")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RewardError(
            "url holds more than an address, and settings are logged",
            where=where,
            fix="put the token in an environment variable and name it with token_env",
        )
    return url.rstrip("/")


def read_token(name: str | None, where: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token in the environment variable `name`. Raises RewardError when it is not set or not a header's text."""
    if name is None:
        return None
    token = environment.get(name, "").strip()
    if not token or not token.isascii() or not token.isprintable():
        problem = "is not plain ASCII" if token else "is not set"
        raise RewardError(f"environment variable {name} {problem}", where=where, fix=f"export {name}=...")
    return token


__all__ = ["Fault", "Refused", "check_url", "exchange", "new_client", "read_token"]
