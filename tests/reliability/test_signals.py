"""SIGINT and SIGTERM: the last finished iteration is saved, quickly, and the run goes on as if unbroken."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time

import pytest

from faults import fork, wait
from pcpo.errors import Interrupted
from pcpo.trainer import checkpoint, protocol
from training import SMALL, merge, reddish, same, weights

FULL = [pytest.mark.slow, pytest.mark.reliability]
SIGNALS = [signal.SIGINT, signal.SIGTERM]
CHANGES = merge(SMALL, {"batch": {"prompts": 2}, "train": {"updates": 2, "iterations": 8}, "optim": {"ema_decay": 0.9}})


@pytest.fixture
def started():
    """started(trainer factory): a child that trains; returns its pid when its first reward is asked for."""
    pids = []

    def start(make, **attributes):
        reader, writer = os.pipe()

        def reward(images, prompts, metadata):
            os.write(writer, b".")
            return reddish(images, prompts, metadata)

        reward.__qualname__ = reddish.__qualname__

        def train():
            it = make(reward)
            for name, value in attributes.items():
                setattr(it.saver, name, value)
            it.train()

        pids.append(fork(train))
        assert select.select([reader], [], [], 60)[0]
        os.close(reader)
        os.close(writer)
        return pids[-1]

    yield start
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended, as it should
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("points", [1, pytest.param(20, marks=FULL)])
def test_a_signal_saves_and_the_run_goes_on(trainer, started, ram, measured, capfd, number, points):
    straight = trainer(output=ram / "straight", **CHANGES)
    straight.train()
    dice, slowest, places = random.Random(0), 0.0, set()
    for point in range(points):
        folder = ram / f"{point}"
        pid = started(lambda reward, folder=folder: trainer(output=folder, reward=reward, **CHANGES))
        time.sleep(dice.uniform(0, 0.4))
        began = time.monotonic()
        os.kill(pid, number)
        assert wait(pid) == 128 + number
        slowest = max(slowest, time.monotonic() - began)
        (saved,) = checkpoint.list_checkpoints(folder / "checkpoints")
        assert protocol.verify(saved).iteration < 8 and [saved] == list(saved.parent.iterdir())
        assert not (folder / "run.lock").exists()
        places.add(int(saved.name))
        resumed = trainer(output=folder, resume=True, **CHANGES)
        assert resumed.state.iteration == int(saved.name)
        resumed.train()
        assert same(weights(resumed), weights(straight))
    assert slowest < 30
    assert f"pcpo: {number.name}: stopping" in capfd.readouterr().err
    measured(
        f"signal_{number.name}", points=points, iterations=sorted(places), slowest_seconds=slowest, bitwise_equal=True
    )


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_second_signal_ends_at_once(trainer, started, ram, number):
    pid = started(
        lambda reward: trainer(output=ram / "run", reward=reward, **CHANGES),
        save_border=lambda events: time.sleep(60),
    )
    os.kill(pid, number)
    time.sleep(0.5)
    began = time.monotonic()
    os.kill(pid, number)
    assert wait(pid) == 128 + number and time.monotonic() - began < 5


def test_a_reward_that_waits_is_broken_off(trainer, ram):
    """In this process: the handler is ours while training only, and what was before comes back."""
    before = [signal.getsignal(number) for number in SIGNALS]
    calls = []

    def waiting(images, prompts, metadata):
        calls.append(time.monotonic())
        if len(calls) == 4:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            try:
                time.sleep(60)
            except Exception:
                pytest.fail("a reward's `except Exception` takes the signal for an error")
        return reddish(images, prompts, metadata)

    waiting.__qualname__ = reddish.__qualname__
    old = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        it = trainer(output=ram / "run", reward=waiting, **CHANGES)
        with pytest.raises(Interrupted, match=r"stopped by SIGTERM: .*/run: saved as checkpoint 000002") as caught:
            it.train()
    finally:
        signal.signal(signal.SIGALRM, old)
    assert caught.value.exit_code == 143 and time.monotonic() - calls[-1] < 30
    assert [signal.getsignal(number) for number in SIGNALS] == before
    straight = trainer(output=ram / "straight", **CHANGES)
    straight.train()
    it.learner.reward = it.evaluator.reward = reddish
    it.train()
    assert same(weights(it), weights(straight))


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_command_ends_with_the_signals_code(folders, tmp_path, number):
    """The whole command on a real folder: one line on stderr, exit code, and a run that goes on."""
    (tmp_path / "tiny.yaml").write_text(
        f"preset: pcpo_sd3\nname: tiny\nmodel: {{path: {folders['sd3']}}}\nprompts: [a]\nsampler: {{steps: 3}}\n"
        "batch: {prompts: 1, group_size: 2}\ntrain: {iterations: 500}\nevaluation: {num_prompts: 1, every: 500}\n"
    )
    command = [sys.executable, "-m", "pcpo", "train", "tiny.yaml", "-o", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "iter " in line:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err and f"pcpo: stopped by {number.name}: run: saved as checkpoint 0000" in err
    (saved,) = checkpoint.list_checkpoints(tmp_path / "run/checkpoints")
    done = int(saved.name) + 1
    command += ["--resume", "--set", f"train.iterations={done}"]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0 and f"resumed    from checkpoint {saved.name}" in again.stdout, again.stderr
