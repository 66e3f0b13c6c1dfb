"""Where no sum is rounded, a minibatch in any number of calls gives the same gradient, to the last bit.

Every number here is a small multiple of a power of two, and so is all that the update makes of it: products, squares,
means over 16 values and 8 pairs need fewer than 53 bits. What a split changes on a real network is then rounding only.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from pcpo.credit import StepCredit
from pcpo.models.base import Conditioning
from pcpo.objectives.compose import make_objective
from pcpo.observe.console import Console
from pcpo.trainer.advantage import Advantages
from pcpo.trainer.config import Config
from pcpo.trainer.guard import Guard, Where
from pcpo.trainer.memory import CallSizes
from pcpo.trainer.state import TrainState
from pcpo.trainer.step import Policy, Update
from pcpo.trainer.update import Updater
from pcpo.types import Grid, StepStats, Trajectory

PICTURES, STEPS, SHAPE, SIZE = 4, 2, (4, 2, 2), 16
CLIP = 1 / 64
CLIPPED = {"matching": True, "log_hinge": True, "reinforce": False}


def dyadic(*shape, unit, bound):
    """Random multiples of `unit` in [-bound, bound], float64."""
    generator = torch.Generator().manual_seed(sum(shape) + int(1 / unit))
    steps = int(bound / unit)
    return torch.randint(-steps, steps + 1, shape, generator=generator).double() * unit


class Linear(nn.Module):
    """An adapter whose prediction is x W."""

    device = torch.device("cpu")

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    @property
    def unwrapped(self):
        return self

    def predict(self, x, timestep, cond, index, guidance_scale):
        return (x.flatten(1) @ self.weight).view_as(x)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def update_of(adapter, old_weight, objective):
    """Four pictures and two steps, sampled by other weights than those that are trained now."""
    x = dyadic(PICTURES, STEPS, *SHAPE, unit=1 / 8, bound=2)
    trajectory = Trajectory(
        x_t=x,
        noise=dyadic(PICTURES, STEPS, *SHAPE, unit=1 / 16, bound=2),
        prediction_old=(x.flatten(2) @ old_weight).view_as(x),
        log_prob=torch.zeros(PICTURES, STEPS),
        steps=torch.arange(STEPS),
        latents=x[:, -1],
        prompt_index=torch.zeros(PICTURES, dtype=torch.long),
    )
    config, one, step = Config.model_validate({}), rows(1, 1), rows(0.5, 0.25)
    return Update(
        policy=Policy(adapter, Grid("flow", rows(1000, 500), rows(1, 0.5, 0)), 1.0),
        trajectory=trajectory,
        cond=Conditioning([], {}),
        advantage=rows(1.5, -0.75, 0.25, -1),
        credit=StepCredit(one, one, rows(0.5, 1.25), rows(1, 0.5), rows(1, 2), one),
        stats=StepStats(torch.arange(STEPS), rows(1, 0.5), step, step, step, one, torch.zeros(STEPS, dtype=torch.bool)),
        objective=make_objective(objective, CLIP),
        objective_settings=config.objective.model_copy(update={"reduce": "mean", "quadratic": True}),
        penalty=config.kl,
    )


def gradient(objective, micro, rollout):
    """Gradient [16, 16] of the minibatch by the updater, in calls of `micro` pairs; and the metrics."""
    config = Config.model_validate(
        {
            "batch": {"prompts": 1, "group_size": PICTURES, "rollout": rollout, "micro": micro},
            "train": {"updates": 1},
        }
    )
    old = dyadic(SIZE, SIZE, unit=1 / 8, bound=1)
    adapter = Linear(old + dyadic(SIZE, SIZE, unit=1 / 64, bound=1 / 16))
    sizes = CallSizes(config)
    state = TrainState(
        [("weight", adapter.weight)], config.optim, Advantages(config.advantage, config.reward_mix, {}), sizes
    )
    updater = Updater(config, state, Guard("stop"), sizes, Console(True))
    taken = []
    updater._optimise = lambda where: taken.append(adapter.weight.grad.clone()) or 0.0
    where = Where(1, [], torch.zeros(PICTURES, dtype=torch.long))
    outcome = updater.run(update_of(adapter, old, objective), torch.arange(PICTURES), where, lambda message: None)
    return taken[0], outcome.metrics


@pytest.mark.parametrize("rollout", [4, 2, 1])  # calls of the rollout's size are filled up with rows that do not count
@pytest.mark.parametrize("objective", CLIPPED)
def test_every_split_gives_the_same_bits(objective, rollout):
    whole, metrics = gradient(objective, 8, rollout)
    assert whole.dtype == torch.float64 and whole.count_nonzero() > 200
    assert (0 < metrics.mean("clipped") < 1) == CLIPPED[objective]
    for micro in (4, 2, 1):
        part, _ = gradient(objective, micro, rollout)
        assert (part - whole).abs().max() == 0.0


def test_no_sum_is_rounded():
    """The gradient is that of rational arithmetic: the premise of the law, for the objective without a clip."""
    old = dyadic(SIZE, SIZE, unit=1 / 8, bound=1)
    weight = old + dyadic(SIZE, SIZE, unit=1 / 64, bound=1 / 16)
    update = update_of(Linear(weight), old, "reinforce")
    found = gradient("reinforce", 8, 4)[0]
    run, credit = update.trajectory, update.credit
    expected = [[Fraction(0)] * SIZE for _ in range(SIZE)]
    for b in range(PICTURES):
        for s in range(STEPS):
            x, z, change = (
                [Fraction(v) for v in t.flatten().tolist()]
                for t in (run.x_t[b, s], run.noise[b, s], run.x_t[b, s].flatten() @ (weight - old))
            )
            w, scale, on_loss = (
                Fraction(float(c[s])) for c in (credit.ratio_weight, credit.ratio_scale, credit.loss_weight)
            )
            factor = Fraction(float(update.advantage[b])) * scale * on_loss / (SIZE * PICTURES * STEPS)
            for j in range(SIZE):
                pull = factor * (w * z[j] + w**2 * change[j])
                for i in range(SIZE):
                    expected[i][j] += x[i] * pull
    assert [[Fraction(v) for v in row] for row in found.tolist()] == expected
