"""`pcpo rewards serve` as a process: it says where it is, scores, and ends when it is told to."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys

import pytest
import torch

from pcpo.cli.main import app
from pcpo.errors import RewardError
from pcpo.rewards.builtin import colorfulness
from pcpo.rewards.remote.client import RemoteReward
from training import pictures


def test_it_serves_until_it_is_told_to_stop(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN", "sesame")
    images = pictures(3)
    command = [sys.executable, "-m", "pcpo", "rewards", "serve", "colorfulness", "--port", "0", "--token-env", "TOKEN"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        said = process.stdout.readline()
        url = said.split(" at ", 1)[1].split(";", 1)[0]
        reward = RemoteReward(url, token_env="TOKEN")
        reward.ready()
        assert torch.equal(reward(images, ["a"] * 3, [{}] * 3).values, colorfulness(images, [], []))
        reward.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and not err and "sesame" not in said + out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["colorfulness", "--host", "0.0.0.0"], "--allow-remote"),
        (["colorfulness", "--host", "0.0.0.0", "--allow-remote"], "token of 16 characters"),
        (["colorfulness", "--token-env", "NOT_SET"], "NOT_SET is not set"),
        (["colorfullness"], "did you mean 'colorfulness'"),
        (["http", "-o", "url=http://127.0.0.1:9"], "cannot connect"),
    ],
)
def test_refusals(arguments, said):
    with pytest.raises(RewardError, match=said):
        app(["rewards", "serve", *arguments], standalone_mode=False)


def test_a_missing_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    with pytest.raises(RewardError, match=r'needs uvicorn -> pip install "pcpo\[serve\]"'):
        app(["rewards", "serve", "colorfulness"], standalone_mode=False)
