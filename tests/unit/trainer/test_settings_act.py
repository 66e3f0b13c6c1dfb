"""What single settings do to a run, seen in its log, its calls and its weights."""

from __future__ import annotations

import pytest
import torch

from pcpo.trainer import iteration
from pcpo.trainer.collect import Request
from pcpo.types import RewardResult
from training import reddish, run, same, weights


@pytest.fixture
def trajectories(monkeypatch):
    """Every trajectory that training collects."""
    kept, original = [], iteration.collect

    def spy(*args, **kwargs):
        kept.append(original(*args, **kwargs))
        return kept[-1]

    monkeypatch.setattr(iteration, "collect", spy)
    return kept


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_bf16_is_for_models_and_not_for_latents(trainer, trajectories, family):
    it = trainer(family, run={"precision": "bf16"}, kl={"form": "exact", "beta": 0.1})
    seen, original = set(), it.adapter.forward

    def forward(*args):
        out = original(*args)
        seen.add(out.dtype)
        return out

    it.adapter.forward = forward
    (event,) = run(it).iterations
    assert seen == {torch.bfloat16}
    assert event.ratio_error == 0.0 and event.grad_norm > 0 and event.kl_ref == 0.0
    (rollout,) = trajectories
    fields = ("x_t", "noise", "prediction_old", "log_prob", "latents")
    assert {getattr(rollout, name).dtype for name in fields} == {torch.float32}
    assert {p.dtype for p in it.state.parameters} == {torch.float32}
    # not merely converted: a bfloat16 has zeros in its last 16 bits
    assert (rollout.x_t[:, 1:].contiguous().view(torch.int32) & 0xFFFF).any()


def test_updates_and_epochs_are_optimiser_steps(trainer):
    it = trainer(train={"updates": 3, "epochs": 2, "iterations": 2})
    run(it)
    assert {int(state["step"]) for state in it.state.optimizer.state.values()} == {12}


@pytest.mark.parametrize("select", ["first", "random", "window"])
def test_selected_steps_are_the_trained_ones(trainer, trajectories, select):
    it = trainer("sd3", sampler={"steps": 5}, train={"select": select, "fraction": 0.6, "iterations": 3})
    log = run(it)
    for event, rollout in zip(log.iterations, trajectories, strict=True):
        assert event.steps == rollout.steps.tolist() and len(event.steps) == 3 == len(event.clip_fraction_per_step)
        assert event.clip_fraction_low + event.clip_fraction_high == pytest.approx(event.clip_fraction)
    if select == "first":
        assert {tuple(event.steps) for event in log.iterations} == {(0, 1, 2)} and log.credit.steps == [0, 1, 2]
    else:
        assert len({tuple(event.steps) for event in log.iterations}) > 1 and log.credit.steps == list(range(5))


def test_only_steps_within_the_range_are_trained(trainer, trajectories):
    it = trainer("sd3", sampler={"steps": 5}, train={"within": [0.4, 0.8], "iterations": 1})
    log = run(it)
    assert log.iterations[0].steps == [2, 3] == log.credit.steps == trajectories[0].steps.tolist()


@pytest.mark.parametrize("stochastic", ["all", "trained"])
def test_noise_outside_the_trained_steps(trainer, monkeypatch, stochastic):
    it = trainer(
        sampler={"stochastic": stochastic},
        train={"select": "first", "fraction": 0.5},
        evaluation={"deterministic": True},
    )
    asked = set()
    original = Request.noise
    monkeypatch.setattr(Request, "noise", lambda self, step, *rest: asked.add(step) or original(self, step, *rest))
    run(it)
    assert asked == ({-1, 0, 1} if stochastic == "trained" else {-1, 0, 1, 2, 3})


def test_one_initial_noise_for_a_group(trainer, trajectories):
    for shared in (True, False):
        run(trainer(output=str(shared), batch={"same_noise": shared}))
        first = trajectories[-1].x_t[:, 0].flatten(1)
        assert len(first.unique(dim=0)) == (2 if shared else 6)
        assert len(trajectories[-1].latents.flatten(1).unique(dim=0)) == 6


def test_every_iteration_has_noises_of_its_own(trainer, trajectories):
    run(trainer(prompts=["red"], batch={"prompts": 1}, train={"iterations": 3}))
    assert len(torch.cat([rollout.noise for rollout in trajectories]).flatten(1).unique(dim=0)) == 9


def test_guidance_off_calls_the_prompt_only(trainer):
    for scale, rows in ((1.0, {6}), (3.0, {12})):
        it = trainer(output=str(scale), sampler={"guidance_scale": scale}, evaluation={"per_prompt": 3})
        seen, original = set(), it.adapter.forward

        def forward(x, *rest, seen=seen, original=original):
            seen.add(len(x))
            return original(x, *rest)

        it.adapter.forward = forward
        run(it)
        assert seen == rows


def test_the_gradient_norm_is_clipped_before_the_step(trainer):
    it = trainer(optim={"max_grad_norm": 1e-3})
    norms, step = [], it.state.step

    def watched():
        norms.append(float(torch.cat([p.grad.flatten() for p in it.state.parameters]).norm()))
        step()

    it.state.step = watched
    log = run(it)
    assert norms[0] == pytest.approx(1e-3, rel=1e-3) and log.iterations[0].grad_norm > 1e-2


def test_evaluations_do_not_depend_on_the_runs_seed(trainer):
    logs = [run(trainer(output=str(seed), run={"seed": seed}, evaluation={"deterministic": False})) for seed in (0, 1)]
    assert logs[0].evaluations[0] == logs[1].evaluations[0]
    assert logs[0].iterations[0].reward_mean != logs[1].iterations[0].reward_mean


def test_evaluation_prompts_steps_and_number(trainer):
    seen = []

    def watching(images, prompts, metadata):
        seen.append(list(prompts))
        return reddish(images, prompts, metadata)

    held_out = {"prompts": ["x", "y", "z"], "num_prompts": 2, "per_prompt": 2, "steps": 2, "guidance_scale": 1.0}
    it = trainer(reward=watching, evaluation={**held_out, "every": 5}, train={"iterations": 2})
    log = run(it)
    assert [e.iteration for e in log.evaluations] == [0, 2] and len(seen) == 4
    assert seen[0] == seen[-1] == ["x", "x", "y", "y"] == log.evaluations[0].prompts
    assert it.evaluator.grid.num_steps == 2 and it.learner.policy.grid.num_steps == 4
    assert all((it.folder / name).is_file() for name in (log.evaluations[0].sheet, *log.evaluations[0].pictures))


def test_a_reward_that_abstains_on_every_evaluation_picture_leaves_its_number_out(trainer):
    def fickle(images, prompts, metadata):
        valid = torch.full((len(images),), len(images) == 6)
        return RewardResult(torch.arange(float(len(images))), valid)

    log = run(trainer(reward=fickle))
    assert [event.reward_mean for event in log.evaluations] == [None, None]
    assert log.iterations[0].reward_mean == 2.5


def test_the_quadratic_term_matters_from_the_second_update_on(trainer):
    def final(**changes):
        it = trainer(output=str(changes), optim={"learning_rate": 1e-2}, **changes)
        run(it)
        return weights(it)

    for updates, equal in ((1, True), (2, False)):
        pair = [final(objective={"quadratic": q}, train={"updates": updates}) for q in (True, False)]
        assert same(*pair) == equal


def test_a_non_finite_gradient_stops_before_the_optimiser(trainer):
    from pcpo.errors import NumericError

    it = trainer()
    with torch.no_grad():
        it.adapter.unwrapped.conv_out.weight[0, 0, 0, 0] = torch.nan
    before = weights(it)
    with pytest.raises(NumericError, match="no weight was changed") as caught:
        it.train()
    assert same(before, weights(it)) and "\n" not in str(caught.value)
    assert not (it.folder / "checkpoints").exists() and not (it.folder / "lora").exists()


def test_the_authors_variance_schedule_samples_and_trains(trainer):
    """Evaluations have fewer steps than it needs, and do not need it."""
    it = trainer(
        sampler={"steps": 50, "eta": None},
        credit={"apply": "variance"},
        train={"select": "first", "fraction": 0.04},
    )
    log = run(it)
    assert log.iterations[0].ratio_error == 0.0 and log.iterations[0].grad_norm > 0
    assert log.credit.target[0] == log.credit.target[1] == pytest.approx(sum(log.credit.native) / 2)
    w, ab = 4.5, it.algorithm.grid.alpha_bar[:3]
    c1 = ((1 - ab[:-1]) * ab[1:] / ab[:-1]).sqrt()
    expected = (w * c1 + ((1 + w**2) * (1 - ab[1:]) - c1**2).sqrt()) / (1 + w**2)
    assert log.credit.std == pytest.approx(expected.tolist())
