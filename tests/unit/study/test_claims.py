"""Claims: one owner at a time, whatever dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from pcpo.study import claims

DEAD = {"machine": claims.machine(), "pid": 2**22 + 1, "process_started": 1.0, "heartbeat": time.time()}
RACE = """
import sys, time
from pathlib import Path
from pcpo.study import claims
folder, start, won = Path(sys.argv[1]), float(sys.argv[2]), []
while time.time() < start:
    pass
for n in range(60):
    if claims.take(folder, f"c{n}", "") is not None:
        won.append(n)
print(*won)
time.sleep(2)
"""


def record(folder, cell, number=0, **fields):
    folder.mkdir(exist_ok=True)
    path = folder / f"{cell}.{number}.json"
    path.write_text(json.dumps({**DEAD, "released": False, "shard": "x", "claimed": 0.0, **fields}))
    return path


def wait_for(condition):
    deadline = time.time() + 30
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


def race(folder):
    start = time.time() + 1.5
    command = [sys.executable, "-c", RACE, str(folder), str(start)]
    runners = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    won = [[int(n) for n in runner.communicate(timeout=60)[0].split()] for runner in runners]
    assert all(runner.returncode == 0 for runner in runners)
    return sorted(n for part in won for n in part)


def test_of_many_processes_one_gets_each_cell(tmp_path):
    assert race(tmp_path / "claims") == list(range(60))


def test_of_many_processes_one_takes_over_each_dead_claim(tmp_path):
    for n in range(60):
        record(tmp_path / "claims", f"c{n}")
    assert race(tmp_path / "claims") == list(range(60))


def test_a_claim_holds_while_its_process_lives_and_no_longer(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, leave))
    process.start()
    assert ready.wait(30)
    assert claims.take(tmp_path, "c", "") is None
    assert claims.owner(tmp_path, "c")["pid"] == process.pid
    process.kill()
    process.join()
    assert claims.owner(tmp_path, "c") is None
    assert claims.take(tmp_path, "c", "").number == 1


def hold(folder, ready, leave):
    assert claims.take(folder, "c", "") is not None
    ready.set()
    leave.wait(60)


def test_a_process_id_that_is_used_again_is_not_the_owner(tmp_path):
    record(tmp_path, "c", pid=os.getpid())
    assert claims.take(tmp_path, "c", "").number == 1


def test_another_machine_is_judged_by_its_heartbeat(tmp_path):
    record(tmp_path, "c", machine="elsewhere", heartbeat=time.time() - 250)
    assert claims.take(tmp_path, "c", "") is None
    record(tmp_path, "c", machine="elsewhere", heartbeat=time.time() - 350)
    assert claims.take(tmp_path, "c", "").number == 1


def test_a_record_that_was_never_finished_goes_stale_too(tmp_path):
    path = tmp_path / "c.0.json"
    path.write_text('{"cel')
    assert claims.take(tmp_path, "c", "") is None
    os.utime(path, (time.time() - 400,) * 2)
    assert claims.take(tmp_path, "c", "").number == 1


def test_released_at_the_end_and_after_an_error(tmp_path):
    with claims.take(tmp_path, "c", "mine") as claim:
        assert claims.owner(tmp_path, "c")["shard"] == "mine" and claims.take(tmp_path, "c", "") is None
    assert claims.owner(tmp_path, "c") is None
    with pytest.raises(ZeroDivisionError), claims.take(tmp_path, "c", "") as claim:
        assert claim.number == 1
        raise ZeroDivisionError
    assert claims.take(tmp_path, "c", "").number == 2


def test_the_heartbeat_is_kept_and_a_lost_claim_is_noticed(tmp_path):
    with claims.take(tmp_path, "c", "", every=0.05) as claim:
        before = claims.read(claim.path)["heartbeat"]
        wait_for(lambda: claims.read(claim.path)["heartbeat"] > before)
        claim.check()
        taken = record(tmp_path, "c", number=1, shard="other")
        wait_for(lambda: claim.lost)
        with pytest.raises(claims.ClaimLost):
            claim.check()
    assert not claims.read(claim.path)["released"]
    assert json.loads(taken.read_text())["shard"] == "other"
