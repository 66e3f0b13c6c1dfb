"""Runs whose reward is behind a network that fails: completed with right values only, or stopped in time."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
import torch

import servers
from pcpo.errors import RewardError
from pcpo.models import loading
from pcpo.observe.events import read_events
from pcpo.rewards.base import evaluate
from pcpo.rewards.builtin import colorfulness
from pcpo.rewards.remote import pool
from pcpo.rewards.remote.client import RemoteReward
from pcpo.trainer.loop import PCPOTrainer
from training import pictures, same, settings, weights

SHORT = {
    "sampler": {"steps": 2},
    "batch": {"prompts": 2, "group_size": 4},
    "train": {"iterations": 8, "invalid_window": 40},
    "evaluation": {"every": 4, "num_prompts": 2, "per_prompt": 1, "steps": 2, "credit_probe": 0},
}


class Compared:
    """The remote reward, whose every value is held against the local one."""

    def __init__(self, remote, local):
        self.remote, self.local = remote, local
        self.valid, self.seconds = [], []

    def ready(self):
        self.remote.ready()

    def __call__(self, images, prompts, metadata):
        start = time.monotonic()
        result = evaluate(self.remote, images, prompts, metadata)
        self.seconds.append(time.monotonic() - start)
        expected = evaluate(self.local, images, prompts, metadata)
        assert torch.equal(result.values, torch.where(result.valid, expected.values, 0.0)), "a wrong value"
        self.valid.append(result.valid)
        return result


@pytest.mark.reliability
@pytest.mark.parametrize("model", [None, pytest.param("emoji-sd", marks=pytest.mark.slow)])
def test_a_run_with_thirty_per_cent_of_faults(trainer, monkeypatch, measured, model):
    """Completed; no wrong value; at most three tries each; every call within its deadline."""
    monkeypatch.setattr(pool, "BACKOFF", 0.05)
    server = servers.Faulty(servers.scoring(colorfulness), servers.at_random(0.3))
    with (
        servers.faulty(server) as urls,
        contextlib.closing(RemoteReward(urls, batch_size=2, timeout=0.4, deadline=10.0)) as remote,
    ):
        reward = Compared(remote, colorfulness)
        job = trainer(reward=reward, **SHORT, **({"model": {"path": model}} if model else {}))
        summary = job.train()
    tries = server.seen.values()
    faults = sum(count for fault, count in server.faults.items() if fault)
    assert summary.iterations == 8 and max(tries) <= 3 and set(server.paths) == {"/info", "/score"}
    assert all(server.faults[fault] for fault in servers.FAULTS) and 0.2 < faults / sum(tries) < 0.4
    assert max(reward.seconds) < 11.0
    valid = torch.cat(reward.valid)
    log = read_events(job.folder / "events.jsonl")
    assert sum(row.invalid for row in log.iterations) <= (~valid).sum() <= 0.2 * len(valid)
    measured(
        f"faulty_reward_{model or 'tiny'}",
        requests=sum(tries),
        share_of_faults=round(faults / sum(tries), 3),
        most_tries=max(tries),
        values=len(valid),
        wrong_values=0,
        left_out=int((~valid).sum()),
        longest_call_over_deadline=round(max(reward.seconds) / 10.0, 3),
    )


def test_without_faults_the_run_is_the_local_one_bit_for_bit(trainer):
    with servers.serving(colorfulness) as url, contextlib.closing(RemoteReward(url, batch_size=2)) as remote:
        far = trainer(output="far", reward=remote, train={"iterations": 3})
        far.train()
    near = trainer(output="near", reward=colorfulness, train={"iterations": 3})
    near.train()
    assert same(weights(far), weights(near))
    logs = [read_events(job.folder / "events.jsonl") for job in (far, near)]
    assert [e.values for e in logs[0].evaluations] == [e.values for e in logs[1].evaluations]


@pytest.mark.reliability
def test_a_dead_server_is_named_before_a_weight_is_read(folders, tmp_path, monkeypatch, measured):
    monkeypatch.setattr(loading, "load_pipeline", lambda path: pytest.fail("a weight was read"))
    with servers.serving(colorfulness) as url:
        pass
    parts = [{"name": "http", "options": {"url": url}}]
    start = time.monotonic()
    with pytest.raises(RewardError, match=f"{url}: cannot connect"):
        PCPOTrainer(config=settings("sd", folders["sd"], tmp_path / "run", reward=parts), quiet=True)
    seconds = time.monotonic() - start
    assert seconds < 5 and not (tmp_path / "run").exists()
    measured("dead_reward_server", refused_after_seconds=round(seconds, 2))


@pytest.mark.reliability
@pytest.mark.parametrize("death", ["gone", "silent"])
def test_a_server_that_dies_ends_the_run_in_time_and_it_resumes(trainer, measured, death):
    """A checkpoint at the last iteration, exit code 5 within the deadline; resumed, it is the uninterrupted run."""
    whole = trainer(output="whole", reward=colorfulness, train={"iterations": 4})
    whole.train()

    class Dying:
        def __init__(self, remote, calls):
            self.remote, self.left = remote, calls

        def __call__(self, images, prompts, metadata):
            self.left -= 1
            if not self.left:
                stack.close() if death == "gone" else setattr(server, "latency", lambda: 60.0)
            self.start = time.monotonic()
            return self.remote(images, prompts, metadata)

    server = servers.Faulty(servers.scoring(colorfulness))
    with contextlib.ExitStack() as stack:
        (url,) = stack.enter_context(servers.faulty(server))
        with contextlib.closing(RemoteReward(url, timeout=0.5, deadline=3.0)) as remote:
            # an evaluation, two iterations, an evaluation; then the third iteration
            reward = Dying(remote, calls=5)
            job = trainer(reward=reward, train={"iterations": 4}, run={"checkpoint_every": 100})
            with pytest.raises(RewardError, match="no batch was answered") as caught:
                job.train()
            seconds = time.monotonic() - reward.start
            assert seconds < 3.5 and caught.value.exit_code == 5
    assert [path.name for path in (job.folder / "checkpoints").iterdir()] == ["000002"]
    assert "the reward failed" in (job.folder / "events.jsonl").read_text()

    back = Dying(colorfulness, calls=0)
    again = trainer(reward=back, train={"iterations": 4}, run={"checkpoint_every": 100}, resume=True)
    again.train()
    assert same(weights(again), weights(whole))
    measured("reward_server_dies", **{death: {"deadline": 3.0, "seconds": round(seconds, 2), "bitwise_equal": True}})


class Cluster:
    """Eight workers behind one client: what it gives, and how much of their time it uses."""

    def __init__(self, share, low, high, count):
        chance = random.Random(1)
        self.workers = [
            servers.Faulty(
                servers.scoring(colorfulness),
                servers.at_random(share, seed, faults=("500", "429", "reset", "nan", "length", "redirect")),
                latency=lambda: chance.uniform(low, high),
            )
            for seed in range(8)
        ]
        self.images = pictures(count, 16, 16)

    def run(self):
        prompts, metadata = ["p"] * len(self.images), [{"n": n} for n in range(len(self.images))]
        with (
            servers.faulty(*self.workers) as urls,
            contextlib.closing(RemoteReward(urls, batch_size=1, concurrency=1)) as remote,
        ):
            remote.ready()
            start = time.monotonic()
            self.result = remote(self.images, prompts, metadata)
            self.seconds = time.monotonic() - start
        self.expected = evaluate(colorfulness, self.images, prompts, metadata)
        ideal = sum(worker.busy for worker in self.workers) / len(self.workers)
        return ideal / self.seconds


def check_cluster(cluster):
    valid = cluster.result.valid
    assert torch.equal(cluster.result.values, torch.where(valid, cluster.expected.values, 0.0))
    assert all(max(worker.seen.values()) <= 3 for worker in cluster.workers)
    retried = [body for worker in cluster.workers for body, tries in worker.seen.items() if tries > 1]
    assert not retried  # with eight to choose from, a failed batch goes to another one
    loads = [sum(worker.seen.values()) for worker in cluster.workers]
    assert min(loads) > 0.6 * max(loads)


def test_a_cluster_with_faults_gives_the_local_values():
    cluster = Cluster(share=0.3, low=0.0, high=0.02, count=120)
    cluster.run()
    check_cluster(cluster)
    assert cluster.result.valid.float().mean() > 0.9


def test_a_cluster_loses_no_picture_to_one_dead_worker():
    cluster = Cluster(share=0.0, low=0.0, high=0.02, count=60)
    cluster.workers[3].fault = lambda number: "reset"
    cluster.run()
    assert torch.equal(cluster.result.values, cluster.expected.values) and cluster.result.valid.all()
    assert sum(cluster.workers[3].seen.values()) < 10  # after three failures it is left alone


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_cluster_is_kept_busy(measured, share):
    """Throughput over latency-bound workers: at least nine tenths of all workers busy all the time."""
    cluster = Cluster(share=share, low=0.2, high=0.4, count=320)
    used = cluster.run()
    check_cluster(cluster)
    assert used > 0.9, used
    measured("reward_cluster", **{f"faults {share}": {"workers": 8, "share_of_ideal": round(used, 3)}})
