from __future__ import annotations

import pytest
import torch

from pcpo.errors import ConfigError
from pcpo.samplers import make_sampler
from pcpo.samplers.grids import flow_grid
from pcpo.samplers.noise import noise_batch
from pcpo.samplers.rollout import rollout, sample

SHAPE = (2, 3, 3)
GRID = flow_grid(6, 3.0)
SAMPLER = make_sampler("flow_sde")
PROMPTS = ["a", "a", "b"]
X_T = noise_batch(0, PROMPTS, [0, 1, 0], -1, SHAPE)


def predict(x, i):
    """A prediction of its own for every picture and step."""
    return torch.tanh(x) * (1 + i.view(-1, 1, 1, 1))


def noise_at(step):
    return noise_batch(0, PROMPTS, [0, 1, 0], step, SHAPE)


def test_trajectory_is_the_plain_loop():
    stats, trained = SAMPLER.stats(GRID), torch.tensor([1, 2, 4])
    seen = []
    run = rollout(
        predict, SAMPLER, stats, X_T, noise_at, trained,
        prompt_index=torch.tensor([0, 0, 1]), reduce="sum", on_step=seen.append,
    )  # fmt: skip
    x = X_T
    for i in range(6):
        pred = predict(x, torch.full((3,), i))
        out = SAMPLER.step(pred, x, i, stats, noise=noise_at(i), reduce="sum")
        if i in trained:
            s = trained.tolist().index(i)
            for field, expected in [("x_t", x), ("noise", noise_at(i)), ("prediction_old", pred)]:
                assert torch.equal(getattr(run, field)[:, s], expected)
            assert torch.equal(run.log_prob[:, s], out.log_prob)
        x = out.x_next
    assert torch.equal(run.latents, x)
    assert run.steps.tolist() == [1, 2, 4] and run.prompt_index.tolist() == [0, 0, 1]
    assert seen == list(range(6))


def test_batch_size_does_not_matter():
    stats, trained = SAMPLER.stats(GRID), torch.arange(6)
    whole = rollout(predict, SAMPLER, stats, X_T, noise_at, trained)
    for b in range(3):
        row = slice(b, b + 1)
        alone = rollout(predict, SAMPLER, stats, X_T[row], lambda i, row=row: noise_at(i)[row], trained)
        assert torch.equal(alone.latents[0], whole.latents[b])
        torch.testing.assert_close(alone.log_prob[0], whole.log_prob[b])


def test_sample_is_the_rollout_without_a_record():
    stats = SAMPLER.stats(GRID)
    run = rollout(predict, SAMPLER, stats, X_T, noise_at, torch.tensor([0]))
    assert torch.equal(sample(predict, SAMPLER, stats, X_T, noise_at), run.latents)


def test_no_noise_is_drawn_for_deterministic_steps():
    mask = torch.tensor([False, True, False, True, False, False])
    asked = []

    def counted(step):
        asked.append(step)
        return noise_at(step)

    rollout(predict, SAMPLER, SAMPLER.stats_with(GRID, mask), X_T, counted, torch.tensor([1, 3]))
    assert asked == [1, 3]
    ode = make_sampler("ode")
    assert sample(predict, ode, ode.stats(GRID), X_T).isfinite().all()


def test_no_autograd_and_float32():
    scale = torch.ones((), requires_grad=True)
    run = rollout(lambda x, i: predict(x, i) * scale, SAMPLER, SAMPLER.stats(GRID), X_T, noise_at, torch.tensor([0]))
    assert not run.latents.requires_grad and run.prompt_index.tolist() == [0, 0, 0]
    assert {run.x_t.dtype, run.noise.dtype, run.prediction_old.dtype, run.log_prob.dtype} == {torch.float32}


@pytest.mark.parametrize(
    "steps, message",
    [
        ([], "no step"),
        ([2, 1], "increasing"),
        ([1, 1], "increasing"),
        ([6], "increasing"),
        ([0, 5], "step 5"),
    ],
)
def test_trained_steps_are_checked(steps, message):
    mask = torch.tensor([True] * 5 + [False])
    with pytest.raises(ConfigError, match=message):
        rollout(
            predict,
            SAMPLER,
            SAMPLER.stats_with(GRID, mask),
            X_T,
            noise_at,
            torch.tensor(steps, dtype=torch.long),
        )


def test_sample_needs_noise_if_stochastic():
    with pytest.raises(ConfigError, match="no noise"):
        sample(predict, SAMPLER, SAMPLER.stats(GRID), X_T)
