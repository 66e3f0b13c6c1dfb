"""Who may reach a reward server, and the process that runs it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import uvicorn
from starlette.types import ASGIApp

from pcpo.errors import RewardError
from pcpo.rewards.remote.exchange import read_token
from pcpo.rewards.remote.server import LOOPBACK, make_app
from pcpo.types import Reward

WHERE = "pcpo rewards serve"
TOKEN_LENGTH = 16  # of a server that other machines reach
GRACE_SECONDS = 10  # for requests in flight, when the server is told to stop


@dataclass(frozen=True)
class Access:
    """Where a server listens, the token it asks for, and the Host headers it answers to."""

    host: str
    token: str | None = field(repr=False)
    hosts: frozenset[str]
    any_address: bool

    @classmethod
    def checked(cls, host: str, token_env: str | None, allow_remote: bool, names: Sequence[str]) -> Access:
        """Loopback needs nothing. Raises RewardError for another address without leave or without a long token."""
        token = read_token(token_env, WHERE)
        hosts = frozenset({*LOOPBACK, host.lower(), *(name.lower() for name in names)})
        if is_loopback(host):
            return cls(host, token, hosts, any_address=False)
        if not allow_remote:
            raise RewardError(
                f"other machines could reach {host}", where=WHERE, fix="leave --host out, or give --allow-remote"
            )
        if token is None or len(token) < TOKEN_LENGTH:
            raise RewardError(
                f"a server for other machines needs a token of {TOKEN_LENGTH} characters or more",
                where=WHERE,
                fix="put one in an environment variable and name it with --token-env",
            )
        return cls(host, token, hosts, any_address=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises RewardError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
        # the protocol is named, so that asyncio sends small packets at once: else every reply takes 40 ms longer
        door = socket.socket(family, kind, protocol)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(address)
            door.listen()
        except OSError:
            door.close()
            raise
        return door
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RewardError(
            f"cannot listen on {host}:{port} ({reason})", where=WHERE, fix="choose another --port, or 0 for a free one"
        ) from error


def make_server(app: ASGIApp) -> uvicorn.Server:
    """The HTTP server of an application; `run(sockets=[...])` serves until SIGINT, SIGTERM or should_exit."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def serve_reward(
    reward: Reward, name: str, access: Access, port: int, max_body: int, say: Callable[[str], object]
) -> None:
    """Serve until told to stop; requests in flight are answered first. Raises RewardError when it cannot listen."""
    app = make_app(
        reward, name, token=access.token, hosts=access.hosts, any_address=access.any_address, max_body=max_body
    )
    with listen(access.host, port) as server_socket:
        shown = f"[{access.host}]" if ":" in access.host else access.host
        say(f"{name} at http://{shown}:{server_socket.getsockname()[1]}; Ctrl-C ends it")
        make_server(app).run(sockets=[server_socket])


__all__ = ["Access", "is_loopback", "listen", "make_server", "serve_reward"]
