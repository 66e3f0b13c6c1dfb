"""The reward server: on this machine only, unless a flag and a long token say otherwise; one name, one token."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from pcpo.errors import RewardError
from pcpo.rewards.remote.serving import Access, listen
from servers import serving
from training import constant

TOKEN = "0123456789abcdef"
FOREIGN = (
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example:80",
    "[::2]",
    "0.0.0.0",
    "",
)


def status(url, path="/info", **headers):
    """HTTP status of a GET."""
    request = urllib.request.Request(url + path, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_the_default_is_loopback():
    access = Access.checked("127.0.0.1", None, False, [])
    with listen(access.host, 0) as door:
        assert door.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_other_addresses_need_a_flag_and_a_long_token(host, monkeypatch):
    monkeypatch.setenv("LONG", TOKEN)
    monkeypatch.setenv("SHORT", TOKEN[:15])
    for name, remote in ((None, False), ("LONG", False), (None, True), ("SHORT", True), ("MISSING", True)):
        with pytest.raises(RewardError):
            Access.checked(host, name, remote, [])
    assert Access.checked(host, "LONG", True, []).token == TOKEN


def test_the_command_refuses_before_it_listens(tmp_path):
    command = [sys.executable, "-m", "pcpo", "rewards", "serve", "colorfulness", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 5 and "--allow-remote" in done.stderr


def test_a_foreign_host_header_is_refused(measured):
    with serving(constant) as url:
        assert status(url) == 200
        assert [status(url, Host=name) for name in FOREIGN] == [421] * len(FOREIGN)
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as line:
            line.sendall(b"GET /info HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            assert line.recv(100).split(b" ")[1] in (b"400", b"421")
    measured("server", foreign_host_headers=len(FOREIGN) + 1, let_in=0)


def test_a_wrong_token_is_refused(measured):
    wrong = [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}0",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xff",
    ]
    with serving(constant, token=TOKEN) as url:
        assert status(url, Authorization=f"Bearer {TOKEN}") == 200
        tried = [status(url, **({"Authorization": value} if value is not None else {})) for value in wrong]
        assert tried == [401] * len(wrong)
    measured("server", wrong_tokens=len(wrong))


def test_a_page_of_another_origin_cannot_post(measured):
    """A form or a fetch without preflight can send text or a form only; nothing allows another origin."""
    with serving(constant) as url:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = {"Content-Type": kind, "Origin": "http://evil.example"}
            request = urllib.request.Request(f"{url}/score", data=json.dumps({}).encode(), headers=headers)
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with pytest.raises(urllib.error.HTTPError) as refused:
                opener.open(request, timeout=10)
            assert refused.value.code == 415
            assert "access-control-allow-origin" not in refused.value.headers
            refused.value.close()
