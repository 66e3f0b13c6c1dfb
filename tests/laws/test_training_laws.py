"""Laws that hold for whole updates, on real pipelines with random weights."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pcpo.trainer.configfile import merge
from pcpo.trainer.loop import PCPOTrainer
from pcpo.types import RewardResult
from training import FAMILIES, SILENT, constant, figures, first_gradient, reddish, run, same, settings, weights


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_log_ratio_of_every_rollout_is_zero(trainer, family):
    log = run(trainer(family, train={"iterations": 3}))
    assert [event.ratio_error for event in log.iterations] == [0.0] * 3
    assert all(event.grad_norm > 0 for event in log.iterations)


@pytest.mark.parametrize("updates", [2, 3, 6])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_zero_for_every_number_of_updates(trainer, family, updates):
    """A minibatch is a subset of the rollout's rows, and its calls have the rollout's shape all the same."""
    log = run(trainer(family, train={"updates": updates}, kl={"form": "exact", "beta": 0.1}))
    assert log.iterations[0].ratio_error == 0.0 and not log.warnings


@pytest.mark.parametrize("name, family", [("emoji-sd", "sd"), ("emoji-sd3", "sd3")])
def test_it_is_zero_on_the_embedded_models(tmp_path, name, family):
    changes = {"sampler": {"steps": 2}, "train": {"updates": 3}, "evaluation": {"steps": 1}}
    base = settings(family, name, tmp_path / "run", **changes)
    it = PCPOTrainer(config={**base, "model": {"path": name}}, reward=reddish, quiet=True)
    log = run(it)
    assert log.iterations[0].ratio_error == 0.0 and not log.warnings


def meddling(it):
    """A reward that moves a trained weight between rollout and update, where nothing should."""

    def reward(images, prompts, metadata):
        with torch.no_grad():
            it.state.parameters[-1].add_(0.05)
        return reddish(images, prompts, metadata)

    return reward


def test_a_first_log_ratio_that_is_not_zero_is_told_once_with_its_causes(trainer):
    it = trainer(train={"iterations": 2})
    it.learner.reward = meddling(it)
    log = run(it)
    (warning,) = log.warnings
    assert f"is {log.iterations[0].ratio_error:.2g} at the most, and should be 0" in warning
    assert "LoRA scale" in warning and "attention kernel" in warning
    assert "TF32" not in warning and "dropout" not in warning  # not on a CPU, and not so


def test_dropout_is_named_as_the_likely_cause(trainer):
    it = trainer()
    dropout = next(m for m in it.adapter.unwrapped.modules() if isinstance(m, nn.Dropout))
    dropout.p = 0.5
    dropout.train()
    assert "likely causes: dropout or batch norm in training mode" in run(it).warnings[0]


MICRO = {"batch": {"prompts": 2, "group_size": 2, "rollout": 4}, "sampler": {"steps": 2}}  # eight pairs


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_one_times_eight_is_eight_times_one(trainer, double, family):
    """Eight pairs in 1, 2, 4 and 8 calls, float64: the order of a sum is all that differs."""

    def gradient(size):
        return first_gradient(double(trainer(family, **merge(MICRO, {"batch": {"micro": size}}))))

    whole = gradient(8)
    for size in (4, 2, 1):
        part = gradient(size)
        assert relative(part, whole) < 1e-12


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_in_float32_too_but_for_rounding(trainer, family):
    whole, *parts = (first_gradient(trainer(family, **merge(MICRO, {"batch": {"micro": n}}))) for n in (8, 4, 2, 1))
    assert max(relative(part, whole) for part in parts) < 1e-4


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("rollout, micro", [(6, 4), (2, 2), (3, 24)])
def test_a_split_into_calls_leaves_the_gradient(trainer, double, family, rollout, micro):
    whole = first_gradient(double(trainer(family)))
    parts = first_gradient(double(trainer(family, batch={"rollout": rollout, "micro": micro})))
    assert whole.dtype == torch.float64 and whole.norm() > 0
    assert relative(parts, whole) < 1e-10


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_picture_does_not_depend_on_the_rollouts_batch(trainer, double, family):
    seen = {}

    def watching(images, prompts, metadata):
        seen[len(seen)] = images
        return reddish(images, prompts, metadata)

    for size in (6, 1, 2):
        double(trainer(family, reward=watching, batch={"rollout": size})).learner.run(SILENT)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert len(seen[0].flatten(1).unique(dim=0)) == 6


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_same_seed_gives_the_same_weights_and_log_bit_for_bit(trainer, family):
    changes = {"train": {"iterations": 2, "updates": 2, "select": "random", "fraction": 0.5}}
    runs = []
    for output, seed in (("a", 0), ("b", 0), ("c", 1)):
        it = trainer(family, output=output, run={"seed": seed}, **changes)
        runs.append((figures(run(it)), weights(it)))
    (log, one), (other_log, other), (_, another) = runs
    assert same(one, other) and log == other_log
    assert not same(one, another)


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_gradient_reaches_the_trained_parameters_only(trainer, family, tune):
    it = trainer(family, model={"tune": tune, "lora": {"targets": None}})
    it.learner.updater._optimise = lambda where: 0.0
    it.learner.run(SILENT)
    trained = {id(p) for p in it.state.parameters}
    for name, part in it.pipeline.components.items():
        for parameter in part.parameters() if isinstance(part, nn.Module) else ():
            assert (id(parameter) in trained) == (parameter.grad is not None) == parameter.requires_grad, name
    if tune == "lora":
        assert it.state.names and all(".lora_" in name for name in it.state.names)
        # B starts at 0, so only B can move at first; the last block of a MM-DiT has no use for its text queries
        moved = {n for n, p in zip(it.state.names, it.state.parameters, strict=True) if p.grad.any()}
        still = {n for n in it.state.names if ".lora_A." in n or "blocks.1.attn.add_q_proj" in n}
        assert moved == set(it.state.names) - still


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_equal_rewards_give_no_gradient_and_are_counted(trainer, family):
    log = run(trainer(family, reward=constant))
    (event,) = log.iterations
    assert event.grad_norm == 0.0 and event.zero_std_groups == 2


def test_groups_of_equal_rewards_can_be_left_out(trainer):
    def half(images, prompts, metadata):
        return [2.0**n if n < 3 else 1.0 for n in range(len(images))]

    kept = first_gradient(trainer(reward=half, train={"filter": "zero_std"}))
    diluted = first_gradient(trainer(reward=half))
    assert relative(kept, 2 * diluted) < 1e-5


@pytest.mark.parametrize("updates", [1, 3])
def test_an_iteration_with_nothing_to_learn_changes_nothing(trainer, updates):
    it = trainer(reward=constant, train={"filter": "zero_std", "updates": updates, "iterations": 2})
    before = weights(it)
    log = run(it)
    assert [(e.grad_norm, e.zero_std_groups, e.loss) for e in log.iterations] == [(0.0, 2, None)] * 2
    assert same(before, weights(it))


def test_a_group_that_is_smaller_than_the_updates_still_trains(trainer):
    def one_group(images, prompts, metadata):
        return [2.0**n if n < 3 else 1.0 for n in range(len(images))]

    log = run(trainer(reward=one_group, train={"filter": "zero_std", "updates": 6}))
    assert log.iterations[0].grad_norm > 0


def test_pictures_on_which_the_reward_abstains_have_no_say(trainer):
    """Whatever value they carry, the gradient is that of the others."""

    def abstaining(value):
        def reward(images, prompts, metadata):
            values, valid = torch.tensor([0.0, 1.0, value, 2.0, 5.0, value]), torch.tensor([True, True, False] * 2)
            return RewardResult(values[: len(images)], valid[: len(images)])

        return reward

    one, other = (first_gradient(trainer(reward=abstaining(v))) for v in (0.5, 1e6))
    assert torch.equal(one, other)
    log = run(trainer(reward=abstaining(float("nan"))))
    assert log.iterations[0].invalid == 2 and log.iterations[0].reward_mean == 2.0


# Schedule and application -> factor on the native gradient of a step, at the sampling policy.
CREDITS = [
    ("sd", "uniform", "matching", "matching"),
    ("sd", "uniform", "ratio", "log_hinge"),
    ("sd", "uniform", "lambda", "ppo_clip"),
    ("sd", "guard", "loss", "ppo_clip"),
    ("sd3", "proportional", "matching", "matching"),
    ("sd3", "proportional", "ratio", "hinge"),
    ("sd3", "noise_aware", "loss", "ppo_clip"),
    ("sd3", "guard_dt", "loss", "ppo_clip"),
]


NATIVE = {}  # family -> its measured native norms


@pytest.mark.parametrize("family, schedule, apply, objective", CREDITS)
def test_every_way_to_apply_credit_scales_the_measured_gradient(trainer, family, schedule, apply, objective):
    """norm of a step's gradient / the native norm = target / native weight, measured through the real network."""

    def probe(output, **changes):
        log = run(trainer(family, output=output, evaluation={"credit_probe": 6}, **changes))
        return torch.tensor(log.gradient_share[0].norm, dtype=torch.float64), log

    if family not in NATIVE:
        NATIVE[family], _ = probe("native", credit={"schedule": "native"}, objective={"name": "ppo_clip"})
    measured, log = probe("run", credit={"schedule": schedule, "apply": apply}, objective={"name": objective})
    expected = torch.tensor(log.credit.target).double() / torch.tensor(log.credit.native).double()
    torch.testing.assert_close(measured / NATIVE[family], expected, rtol=1e-3, atol=0)
    assert sum(log.gradient_share[0].share) == pytest.approx(1, abs=1e-12)
    assert sum(log.gradient_share[0].target_share) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("form, tune", [("exact", "lora"), ("rate", "full")])
def test_the_penalty_alone_pulls_towards_the_reference(trainer, form, tune):
    """With equal rewards nothing else acts: its gradient is 0 at the reference, and it falls from anywhere else."""
    it = trainer(
        reward=constant,
        model={"tune": tune},
        kl={"form": form, "beta": 1.0},
        optim={"learning_rate": 1e-3, "weight_decay": 0},
    )
    assert not first_gradient(it).any()
    del it.learner.updater._optimise
    with torch.no_grad():
        for parameter in it.state.parameters:
            parameter.add_(0.02 * torch.randn_like(parameter))
    kls = []
    for _ in range(4):
        it.state.iteration = 0  # the same prompts and noises again
        it.learner.run(SimpleNamespace(write=lambda kind, **fields: kls.append(fields["kl_ref"]) or fields))
    assert all(later < earlier for earlier, later in pairwise(kls)) and kls[-1] < 0.9 * kls[0]


def test_the_rate_penalty_is_the_exact_one_times_dt(trainer):
    """On one step, where the two differ by a factor."""
    kls = []
    for form in ("exact", "rate"):
        it = trainer(
            "sd3",
            output=form,
            kl={"form": form, "beta": 1e-9},
            train={"select": "first", "fraction": 0.25},
        )
        with torch.no_grad():
            for parameter in it.state.parameters:
                parameter.add_(0.02)
        log = run(it)
        kls.append(log.iterations[0].kl_ref)
    assert kls[1] == pytest.approx(kls[0] * log.credit.dt[0], rel=1e-6)
