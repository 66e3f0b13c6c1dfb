"""By step and along training: known logs give known shares, and a collapse is told from a wandering run."""

from __future__ import annotations

import pytest

from pcpo.study.along import along, collapsed, over_iterations, per_step, unevenness


def result(rewards=(1.0, 2.0, 3.0), diversity=(1.0, 1.0, 1.0), std=1.0, clip=(0.1, 0.3), scale=1.0, others=None):
    evaluations = [
        {"iteration": n, "reward_mean": r, "reward_std": std, "monitors": {"diversity": d}, "held_out": {"other": -r}}
        for n, (r, d) in enumerate(zip(rewards, diversity, strict=True))
    ]
    if others is not None:
        evaluations[0]["held_out_std"] = {"other": others}
    iterations = [
        {
            "iteration": n + 1,
            "clip_fraction": sum(clip) / 2,
            "steps": [0, 1],
            "clip_fraction_per_step": [clip[0] * (n + 1), clip[1]],
            "log_ratio_std_per_step": [1.0, None],
            "log_ratio_quantiles_per_step": {"p01": [-1.0, -2.0], "p50": [0.0, 0.0], "p99": [1.0, 2.0]},
        }
        for n in range(3)
    ]
    probe = {
        "steps": [0, 1],
        "native_share": [0.2, 0.8],
        "target_share": [0.5, 0.5],
        "variance": [1 * scale, 3 * scale],
    }
    shares = [
        {"iteration": 0, **probe, "share": [1.0, 0.0]},
        {"iteration": 1, **probe, "share": [0.25, 0.75]},
        {"iteration": 2, **probe, "share": [0.35, 0.65]},
    ]
    return {"evaluations": evaluations, "iterations": iterations, "gradient_share": shares}


def test_means_by_step_over_probes_iterations_and_seeds():
    found = per_step([result(), result(clip=(0.2, 0.5), scale=7.0), result()])
    assert found["steps"] == [0, 1]
    # the probe before training, where half of a LoRA's gradient is hidden, does not count
    assert [e["mean"] for e in found["share"]] == pytest.approx([0.3, 0.7])
    # shares of the variance do not depend on its unit
    assert [e["mean"] for e in found["variance"]] == pytest.approx([0.25, 0.75])
    assert [e["mean"] for e in found["clip_fraction"]] == pytest.approx([(0.2 + 0.4 + 0.2) / 3, (0.3 + 0.5 + 0.3) / 3])
    assert (found["clip_fraction"][0]["low"], found["clip_fraction"][0]["high"]) == pytest.approx((0.2, 0.4))
    assert found["log_ratio_p99"][1]["mean"] == 2.0 and found["log_ratio_std"][1] == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
    }
    assert unevenness(result(clip=(0.1, 0.2))) == pytest.approx(
        {"largest_gradient_share": 0.7, "largest_variance_share": 0.75, "clip_fraction_spread_over_steps": 0.0}
    )


def test_a_step_that_only_some_iterations_trained_is_a_mean_over_those():
    one = result()
    one["iterations"][1] |= {"steps": [1], "clip_fraction_per_step": [0.9]}
    found = per_step([one, one])
    assert [e["mean"] for e in found["clip_fraction"]] == pytest.approx([(0.1 + 0.3) / 2, (0.3 + 0.9 + 0.3) / 3])


def test_nothing_logged_by_step_is_nothing():
    bare = {"evaluations": [], "iterations": [{"clip_fraction": 0.2}]}
    assert per_step([bare]) is None and unevenness(bare) == {}
    assert over_iterations([bare]) == {"iterations": [], "clip_fraction": []}
    assert along([bare], 10) == {"iterations": [], "measures": {}, "ends": {}}


def test_measures_along_training_stop_at_the_horizon():
    found = along([result(), result(rewards=(1.0, 4.0, 9.0))], 1)
    assert found["iterations"] == [0, 1]
    assert [e["mean"] for e in found["measures"]["reward"]] == [1.0, 3.0]
    assert found["ends"] == {"reward": [2.0, 4.0], "diversity": [1.0, 1.0], "held_out.other": [-2.0, -4.0]}


@pytest.mark.parametrize(
    "changes, lost",
    [
        ({}, False),
        ({"diversity": (1.0, 0.79, 0.79)}, True),
        ({"diversity": (1.0, 0.79, 0.81)}, False),  # one evaluation is not enough
        ({"rewards": (1.0, 3.0, 2.6)}, False),
        ({"rewards": (3.0, 2.4, 2.4)}, True),
        ({"rewards": (3.0, 2.4, 2.6)}, False),
        ({"rewards": (3.0, 2.4, 2.4), "std": 2.0}, False),
        ({"rewards": (3.0, 2.4, 2.4), "std": None}, False),
        ({"others": 0.4}, True),  # the held-out reward goes from -1 to -2 and -3, the limit is -1.8
        ({"others": 0.6}, False),  # it is -2.2
    ],
)
def test_collapse(changes, lost):
    assert collapsed(result(**changes)) is lost
