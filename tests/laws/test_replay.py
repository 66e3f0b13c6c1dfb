"""Old predictions that are computed again are those that were stored, bit for bit."""

from __future__ import annotations

import pytest

from training import run, same, weights


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize(
    "train", [{"updates": 1}, {"updates": 2}, {"updates": 2, "epochs": 2}], ids=["one", "two", "epochs"]
)
def test_replay_learns_the_same(trainer, family, train):
    made = []
    for replay in (False, True):
        it = trainer(family, output=str(replay), train={**train, "replay": replay, "iterations": 2})
        log = run(it)
        made.append((weights(it), [event.ratio_error for event in log.iterations]))
    (stored, errors), (replayed, errors_replayed) = made
    assert same(stored, replayed)
    assert errors == errors_replayed == [0.0, 0.0]


def test_replay_is_of_the_policy_that_sampled(trainer):
    """After an update the ratio of a replayed pair is not 1, and the weights are those of the update again."""
    it = trainer("sd", train={"updates": 2, "replay": True}, batch={"rollout": 3, "micro": 3})
    log = run(it)
    assert log.iterations[0].ratio_error == 0 and max(log.iterations[0].log_ratio_std_per_step) > 0
    assert it.learner._sampled() is not None


def test_less_is_stored(trainer, monkeypatch):
    from pcpo.trainer import iteration

    kept = []
    collect = iteration.collect
    monkeypatch.setattr(iteration, "collect", lambda *a, **k: kept.append(collect(*a, **k)) or kept[-1])
    for replay in (False, True):
        trainer("sd", output=str(replay), train={"replay": replay}, batch={"rollout": 2}).train()
    assert kept[0].prediction_old is not None and kept[1].prediction_old is None
    assert len(kept[1].x_t) == 6
