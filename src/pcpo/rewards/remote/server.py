"""A reward behind HTTP: three routes, one request at a time, nothing believed before it was checked."""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Collection
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pcpo.errors import RewardError
from pcpo.rewards.base import evaluate
from pcpo.rewards.remote.wire import FORMAT, MAX_PICTURES, WireError, decode_request, encode_reply
from pcpo.types import Reward

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_WAITING = 16  # requests that are read or wait for their turn; more are told to come again
BODY_SECONDS = 30.0  # for a request to arrive
KINDS = {400: "malformed", 404: "not_found", 405: "method", 413: "too_large"}
log = logging.getLogger("pcpo.rewards.remote")


def make_app(
    reward: Reward,
    name: str,
    *,
    token: str | None = None,
    hosts: Collection[str] = LOOPBACK,
    any_address: bool = False,
    max_body: int = 64 * 2**20,
) -> Starlette:
    """The ASGI application that serves `reward`.

    token        required as a bearer token on every route but /health; None: no token is asked for
    hosts        what the Host header may hold
    any_address  it may also hold any literal address: that is never the name of somebody else's page
    max_body     bytes of a request, checked while it arrives, before anything is parsed
    """
    service = _Service(reward, name, max_body)
    app = Starlette(
        routes=[
            Route("/health", service.health),
            Route("/info", service.info),
            Route("/score", service.score, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _refused, Exception: _broken},
    )
    app.router.redirect_slashes = False
    app.add_middleware(Guard, token=token, hosts=hosts, any_address=any_address)
    return app


class Guard:
    """Refuses a Host header that is not ours (DNS rebinding) and a missing or wrong token."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str], any_address: bool) -> None:
        self.app, self.token, self.hosts, self.any_address = app, token, hosts, any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 421 or 401."""
        request = Request(scope)
        response = None
        if not self._is_host(request.headers.getlist("host")):
            response = _error(421, "host", "this server is not meant by that Host header; see --allow-host")
        elif self.token and scope["path"] != "/health" and not self._is_token(request.headers.get("authorization")):
            response = _error(401, "token", "a bearer token is needed", {"www-authenticate": "Bearer"})
        await (response or self.app)(scope, receive, send)

    def _is_host(self, headers: list[str]) -> bool:
        host = host_name(headers[0]) if len(headers) == 1 else ""
        return host in self.hosts or (self.any_address and _is_address(host))

    def _is_token(self, header: str | None) -> bool:
        return hmac.compare_digest((header or "").encode("latin-1"), f"Bearer {self.token}".encode("latin-1"))


class _Service:
    def __init__(self, reward: Reward, name: str, max_body: int) -> None:
        self.reward, self.name, self.max_body = reward, name, max_body
        self.waiting = 0
        self.turn = anyio.Semaphore(1)  # a reward is called by one thread at a time

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def info(self, request: Request) -> Response:
        limits = {"max_body": self.max_body, "max_pictures": MAX_PICTURES}
        return JSONResponse({"format": FORMAT, "reward": self.name, **limits})

    async def score(self, request: Request) -> Response:
        if self.waiting >= MAX_WAITING:
            return _error(503, "busy", f"{self.waiting} requests wait already", {"retry-after": "1"})
        self.waiting += 1
        try:
            return await self._score(request)
        finally:
            self.waiting -= 1

    async def _score(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _error(415, "type", "send application/json")
        try:
            with anyio.fail_after(BODY_SECONDS):
                body = await self._read(request)
        except TimeoutError:
            return _error(408, "slow", f"the request took over {BODY_SECONDS:g} s to arrive")
        except ClientDisconnect:
            return _error(400, "malformed", "the request broke off")
        if body is None:
            return _error(413, "too_large", f"at most {self.max_body} bytes; send smaller batches")
        try:
            async with self.turn:
                reply = await anyio.to_thread.run_sync(partial(self._values, body))
        except WireError as error:
            return _error(400, "malformed", str(error))
        except RewardError as error:
            log.warning("%s", error)
            return _error(500, "reward", str(error))
        return Response(reply, media_type="application/json")

    async def _read(self, request: Request) -> bytes | None:
        """The body, or None as soon as it is known to be too large."""
        announced = request.headers.get("content-length", "0")
        if not announced.isdigit() or int(announced) > self.max_body:
            return None
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.max_body:
                return None
        return bytes(body)

    def _values(self, body: bytes) -> bytes:
        images, prompts, metadata = decode_request(body)
        return encode_reply(evaluate(self.reward, images, prompts, metadata, name=self.name))


def host_name(header: str) -> str:
    """The name or address in a Host header, without port and brackets, lower case."""
    name = header[: header.rfind("]") + 1] if header.startswith("[") else header.partition(":")[0]
    return name.strip("[]").lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"type": kind, "message": message[:500]}}, status, headers)


async def _refused(request: Request, error: Any) -> Response:
    return _error(error.status_code, KINDS.get(error.status_code, "refused"), str(error.detail))


async def _broken(request: Request, error: Exception) -> Response:
    return _error(500, "internal", "an error of the server; its log says which")


__all__ = ["LOOPBACK", "Guard", "host_name", "make_app"]
