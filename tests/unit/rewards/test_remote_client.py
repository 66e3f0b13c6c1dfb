"""The client never uses a wrong value: each way of failing is tried again, and then leaves its pictures out."""

import gc
import threading
import time

import pytest
import torch

import servers
from pcpo.errors import RewardError
from pcpo.rewards import check_reward, load_reward
from pcpo.rewards.builtin import colorfulness
from pcpo.rewards.remote import pool
from pcpo.rewards.remote.client import RemoteReward
from pcpo.types import RewardResult
from training import pictures

IMAGES = pictures(10)
PROMPTS = [f"prompt {n}" for n in range(10)]
METADATA = [{"n": n} for n in range(10)]
LOCAL = colorfulness(IMAGES, PROMPTS, METADATA)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Waits of hundredths of seconds."""
    monkeypatch.setattr(pool, "BACKOFF", 0.02)
    monkeypatch.setattr(pool, "READY", 1.0)


@pytest.fixture
def call():
    """call(url, ...): the result for the ten pictures; connections are closed after the test."""
    made = []

    def score(url, **options):
        made.append(RemoteReward(url, **{"batch_size": 2, "timeout": 0.3, **options}))
        return made[-1](IMAGES, PROMPTS, METADATA)

    yield score
    for reward in made:
        reward.close()


def always(fault):
    return lambda number: fault


def first(fault, count=1):
    return lambda number: fault if number <= count else None


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_without_faults_it_is_the_local_reward(call, batch_size, concurrency):
    def reward(images, prompts, metadata):
        info = {"n": torch.tensor([float(entry["n"]) for entry in metadata])}
        valid = torch.tensor([not prompt.endswith("7") for prompt in prompts])
        return RewardResult(colorfulness(images, prompts, metadata), valid, info)

    with servers.serving(reward) as url:
        result = call(url, batch_size=batch_size, concurrency=concurrency, timeout=10)
    assert torch.equal(result.values[result.valid], LOCAL[result.valid])
    assert result.valid.tolist() == [n != 7 for n in range(10)]
    assert result.info["n"].tolist() == list(range(10))


@pytest.mark.parametrize("fault", servers.FAULTS)
def test_every_fault_is_survived_once(call, fault):
    server = servers.Faulty(servers.scoring(colorfulness), first(fault))
    with servers.faulty(server) as urls:
        result = call(urls)
    assert torch.equal(result.values, LOCAL) and result.valid.all()
    assert sorted(server.seen.values()) == [1, 1, 1, 1, 2]
    assert set(server.paths) == {"/score"}  # a redirect leads nowhere


@pytest.mark.parametrize("fault", servers.FAULTS)
def test_every_fault_ends_after_three_tries(call, fault):
    server = servers.Faulty(servers.scoring(colorfulness), always(fault))
    with servers.faulty(server) as urls, pytest.raises(RewardError, match="no batch was answered: 5 x"):
        call(urls)
    assert set(server.seen.values()) == {3}


def test_a_batch_that_fails_leaves_its_pictures_out(call, caplog):
    server = servers.Faulty(servers.scoring(colorfulness), first("nan", 3))
    with servers.faulty(server) as urls:
        result = call(urls, concurrency=1, batch_size=6)
    lost = ~result.valid
    assert lost.sum() in (0, 4, 6) and torch.equal(result.values, torch.where(lost, 0.0, LOCAL))
    server = servers.Faulty(
        lambda path, body: servers.scoring(colorfulness)(path, body) if b"prompt 0" in body else b"[]"
    )
    with servers.faulty(server) as urls:
        result = call(urls)
    assert result.valid.tolist() == [True] * 2 + [False] * 8 and torch.equal(result.values[:2], LOCAL[:2])
    assert "4 of 5 got no answer" in caplog.text


def test_the_deadline_counts_everything(call):
    server = servers.Faulty(servers.scoring(colorfulness), latency=lambda: 60.0)
    with servers.faulty(server) as urls:
        start = time.monotonic()
        with pytest.raises(RewardError, match="deadline of 2 s passed"):
            call(urls, timeout=30, deadline=2.0)
        assert 1.9 < time.monotonic() - start < 2.2


def test_retry_after_is_kept_within_the_deadline(call):
    def busy(path, body):
        return servers.Reply(503, b"{}", {"retry-after": str(wait)}) if server.number <= 5 else answer(path, body)

    answer, wait = servers.scoring(colorfulness), 1
    server = servers.Faulty(busy)
    with servers.faulty(server) as urls:
        start = time.monotonic()
        assert call(urls, concurrency=8).valid.all()
        assert 1.0 <= time.monotonic() - start < 3
    wait, server = 100, servers.Faulty(busy)
    with servers.faulty(server) as urls, pytest.raises(RewardError, match="HTTP 503"):
        call(urls, concurrency=8, deadline=10)
    assert time.monotonic() - start < 6 and set(server.seen.values()) == {1}


@pytest.mark.parametrize(
    "status, headers, said",
    [
        (401, {}, "HTTP 401"),
        (404, {}, "HTTP 404"),
        (413, {}, "HTTP 413: send less"),
    ],
)
def test_a_refusal_is_not_repeated(call, status, headers, said):
    server = servers.Faulty(lambda path, body: servers.Reply(status, b'{"error": {"message": "send less"}}', headers))
    with servers.faulty(server) as urls, pytest.raises(RewardError, match=said):
        call(urls)
    assert set(server.seen.values()) == {1}


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/html"},
        {"content-type": "application/octet-stream"},
        {"content-encoding": "gzip"},
        {"content-length": "999999999"},
    ],
)
def test_headers_of_another_reply(call, headers):
    answer = servers.scoring(colorfulness)
    server = servers.Faulty(lambda path, body: servers.Reply(200, answer(path, body), headers))
    with servers.faulty(server) as urls, pytest.raises(RewardError, match="no batch was answered"):
        call(urls)


def test_the_token_is_sent_and_never_shown(call, monkeypatch):
    monkeypatch.setenv("TOKEN", "sesame-open-1234")
    with servers.serving(colorfulness, token="sesame-open-1234") as url:
        assert call(url, token_env="TOKEN", timeout=10).valid.all()
        with pytest.raises(RewardError, match="HTTP 401"):
            call(url)
    echo = b'{"error": {"message": "bad key sesame-open-1234"}}'
    server = servers.Faulty(lambda path, body: servers.Reply(401, echo, {}))
    with servers.faulty(server) as urls, pytest.raises(RewardError, match=r"bad key \*\*\*") as caught:
        call(urls, token_env="TOKEN")
    assert "sesame" not in str(caught.value)


def test_the_environment_is_not_read(call, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with servers.serving(colorfulness) as url:
        assert call(url, timeout=10).valid.all()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"url": "127.0.0.1:80"}, "not an address"),
        ({"url": "ftp://host"}, "not an address"),
        ({"url": "http://"}, "not an address"),
        ({"url": "http://a b"}, "not an address"),
        ({"url": "http://host:99999"}, "not an address"),
        ({"url": 7}, "not an address"),
        ({"url": [7]}, "not an address"),
        ({"url": "http://user:secret@host"}, "token in an environment variable"),
        ({"url": "http://host/?key=secret"}, "token in an environment variable"),
        ({"url": []}, "needs one url"),
        ({"url": ["http://a", "http://a/"]}, "needs one url"),
        ({"token_env": "NOT_SET"}, "NOT_SET is not set"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 1000}, "batch_size 1000"),
        ({"tries": 1.5}, "tries 1.5"),
        ({"deadline": float("nan")}, "deadline nan"),
        ({"timeout": -1}, "timeout -1"),
        ({"retries": 3}, "options do not fit"),
        ({}, ""),
    ],
)
def test_options(options, said):
    options = {"url": "http://127.0.0.1:8800", **options}
    if not said:
        assert load_reward("http", **options)
        return
    with pytest.raises(RewardError, match=said) as caught:
        load_reward("http", **options)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value).replace("secret@", "").partition("->")[2]


def test_ready():
    with servers.serving(colorfulness) as url:
        reward = RemoteReward(url)
        reward.ready()
        assert check_reward(reward) == []
        reward.close()
        gone = url
    start = time.monotonic()
    for urls in (gone, [gone]):
        reward = RemoteReward(urls)
        with pytest.raises(RewardError, match="cannot connect"):
            reward.ready()
        reward.close()
    for said in (b"{}", b"[]", b'{"format": "pcpo-reward/9"}', b"7", b"x"):
        with servers.faulty(servers.Faulty(lambda path, body, said=said: said)) as urls:
            reward = RemoteReward(urls)
            with pytest.raises(RewardError, match="no reward server of this version"):
                reward.ready()
            reward.close()
    silent = servers.Faulty(lambda path, body: b"{}", latency=lambda: 60.0)
    with servers.faulty(silent) as urls:
        reward = RemoteReward(urls)
        with pytest.raises(RewardError, match="no whole reply in 1 s"):
            reward.ready()
        reward.close()
    assert time.monotonic() - start < 6


def test_connections_are_kept_and_the_thread_ends_with_the_reward():
    before = threading.active_count()
    with servers.serving(colorfulness) as url:
        serving = threading.active_count()
        reward = RemoteReward(url, concurrency=1)
        for _ in range(3):
            reward(IMAGES, PROMPTS, METADATA)
        assert threading.active_count() > serving
        del reward
        gc.collect()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_replies_that_name_different_parts(call):
    def reward(images, prompts, metadata):
        return colorfulness(images, prompts, metadata), {prompts[0]: colorfulness(images, prompts, metadata)}

    with servers.serving(reward) as url, pytest.raises(RewardError, match="different parts"):
        call(url, timeout=10)
