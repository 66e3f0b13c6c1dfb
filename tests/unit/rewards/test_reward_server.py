"""The reward server answers every request: with values, or with a typed refusal; never with a trace."""

import http.client
import json
import random
import socket
import time
from urllib.parse import urlsplit

import pytest

import servers
from pcpo.errors import RewardError
from pcpo.rewards.builtin import colorfulness
from pcpo.rewards.remote import server as module
from pcpo.rewards.remote.server import host_name
from pcpo.rewards.remote.serving import Access, is_loopback, listen
from pcpo.rewards.remote.wire import decode_reply, encode_request
from training import pictures

IMAGES = pictures(3)
GOOD = encode_request(IMAGES, ["a", "b", "c"], [{}] * 3)
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def url():
    with servers.serving(colorfulness, max_body=2**16) as url:
        yield url


def ask(url, method="POST", path="/score", body=GOOD, headers=JSON, **more):
    """Status and reply; a reply that is not JSON is an error."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, body, {**headers, **more})
        response = connection.getresponse()
        assert response.headers["content-type"] == "application/json"
        data = response.read()
        assert b"Traceback" not in data and b"File " not in data
        return response.status, json.loads(data or b"null"), response.headers
    finally:
        connection.close()


def refused(url, status, kind, **request):
    found, said, _ = ask(url, **request)
    assert (found, said["error"]["type"]) == (status, kind)
    return said["error"]["message"]


def test_values_are_those_of_the_reward(url):
    status, said, _ = ask(url)
    assert status == 200
    values = decode_reply(json.dumps(said).encode(), 3).values
    assert values.tolist() == colorfulness(IMAGES, [], []).tolist()
    assert ask(url, "GET", "/health", None)[:2] == (200, {"status": "ok"})
    assert ask(url, "GET", "/info", None)[1]["reward"] == "served"


def test_typed_refusals(url):
    refused(url, 415, "type", headers={"content-type": "text/plain"})
    refused(url, 415, "type", headers={"content-type": "application/x-www-form-urlencoded"})
    refused(url, 413, "too_large", body=b" " * (2**16 + 1))
    refused(url, 405, "method", method="PUT")
    refused(url, 405, "method", method="GET", body=None)
    assert "not a PNG" in refused(url, 400, "malformed", body=GOOD.replace(b'"iVBOR', b'"AAAAA'))


@pytest.mark.parametrize(
    "path",
    ["/", "/score/", "//score", "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/score", "/score/../secret",
     "/static/..\\..\\x", "/info%00", "/docs", "/openapi.json", "/score;x", "/" + "a" * 9000],
)  # fmt: skip
def test_there_is_no_other_path(url, path):
    refused(url, 404, "not_found", path=path)


def test_a_body_without_a_length_is_cut_off(url):
    parts = [b" " * 1000] * 100
    assert refused(url, 413, "too_large", body=iter(parts)).startswith("at most 65536 bytes")


def test_host_header(url):
    port = urlsplit(url).port
    for host in (f"127.0.0.1:{port}", "localhost", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert ask(url, Host=host)[0] == 200
    for host in ("attacker.example", f"attacker.example:{port}", "127.0.0.1.attacker.example", "10.0.0.1", "", "["):
        refused(url, 421, "host", Host=host)


def test_host_names():
    for header, name in [("A.b:80", "a.b"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("::1", ""), ("x:y:z", "x")]:
        assert host_name(header) == name


def test_token():
    with servers.serving(colorfulness, token="sesame-open-1234", hosts=["box"], any_address=True) as url:
        good = {"authorization": "Bearer sesame-open-1234"}
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": "sesame-open-1234"}):
            refused(url, 401, "token", headers={**JSON, **headers})
            refused(url, 401, "token", method="GET", path="/info", headers=headers)
        assert ask(url, "GET", "/health", None)[0] == 200
        assert ask(url, **good)[0] == 200
        for host, status in [("box", 200), ("10.1.2.3:80", 200), ("[fe80::1]:80", 200), ("attacker.example", 421)]:
            assert ask(url, Host=host, **good)[0] == status


def test_a_reward_that_fails():
    def broken(images, prompts, metadata):
        raise OSError("disk on fire")

    with servers.serving(broken) as url:
        assert "disk on fire" in refused(url, 500, "reward")
    with servers.serving(lambda images, prompts, metadata: [float("nan")] * 3) as url:
        assert "nan" in refused(url, 500, "reward")


def test_a_full_waiting_room(monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 0)
    with servers.serving(colorfulness) as url:
        refused(url, 503, "busy")
        assert ask(url)[2]["retry-after"] == "1"


def test_a_request_that_does_not_arrive(monkeypatch):
    monkeypatch.setattr(module, "BODY_SECONDS", 0.3)
    with servers.serving(colorfulness) as url:
        refused(url, 408, "slow", body=None, **{"content-length": "10"})


def test_hundreds_of_malformed_bodies(url):
    """Bytes exchanged, cut, doubled, or nested: each gets a 4xx that says what is wrong, and then it still serves."""
    chance = random.Random(0)
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    start = time.monotonic()
    for _ in range(1000):
        body = bytearray(GOOD)
        for _ in range(chance.randint(1, 8)):
            kind, place = chance.randrange(4), chance.randrange(len(body))
            if kind == 0:
                body[place] = chance.randrange(256)
            elif kind == 1:
                del body[place:]
            elif kind == 2:
                body[place:place] = body[: chance.randrange(200)]
            else:
                body[place:place] = bytes(chance.choice([b"[", b"{", b'"', b"null", b"1e999"])) * chance.randint(1, 99)
            body = body or bytearray(b"[")
        connection.request("POST", "/score", bytes(body), JSON)
        response = connection.getresponse()
        said = json.loads(response.read())
        assert response.status in (200, 400) or (response.status == 413 and len(body) > 2**16)
        assert response.status == 200 or said["error"]["message"]
    connection.close()
    assert ask(url)[0] == 200 and time.monotonic() - start < 20


def test_bytes_that_are_not_http(url):
    address = urlsplit(url)
    for data in (
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\n" + b"x" * 100_000,
        b"\x16\x03\x01hello",
        b"POST /score HTTP/9\r\n\r\n",
    ):
        with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert not sock.recv(65536).startswith(b"HTTP/1.1 200")
    assert ask(url)[0] == 200


def test_who_may_listen_where(monkeypatch):
    monkeypatch.setenv("TOKEN", "x" * 16)
    monkeypatch.setenv("SHORT", "x" * 15)
    assert Access.checked("127.0.0.1", None, False, []).token is None
    assert not Access.checked("::1", "TOKEN", True, []).any_address
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""):
        with pytest.raises(RewardError, match="--allow-remote"):
            Access.checked(host, "TOKEN", False, [])
        for token in (None, "SHORT"):
            with pytest.raises(RewardError, match="token of 16"):
                Access.checked(host, token, True, [])
    with pytest.raises(RewardError, match="ABSENT is not set"):
        Access.checked("127.0.0.1", "ABSENT", False, [])
    access = Access.checked("0.0.0.0", "TOKEN", True, ["Box"])
    assert access.any_address and "box" in access.hosts and "x" * 16 not in repr(access)
    assert is_loopback("127.0.0.2") and not is_loopback("127.0.0.1.example.org")


def test_a_port_that_is_taken():
    with listen("127.0.0.1", 0) as taken, pytest.raises(RewardError, match="cannot listen on"):
        listen("127.0.0.1", taken.getsockname()[1])
