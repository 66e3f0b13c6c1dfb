from __future__ import annotations

import pytest
import torch

from pcpo.errors import ConfigError
from pcpo.samplers import make_sampler
from pcpo.samplers.grids import flow_grid
from pcpo.trainer.config import TrainSettings
from pcpo.trainer.schedule import eligible_steps, micro_batches, minibatches, trained_steps

ELIGIBLE = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8])


def steps(iteration, **settings):
    return trained_steps(ELIGIBLE, TrainSettings(**settings), 0, iteration).tolist()


def test_all_and_first_take_what_is_eligible():
    for select in ("all", "first"):
        assert steps(3, select=select) == ELIGIBLE.tolist()


def test_a_random_set_is_ascending_new_each_time_and_covers_everything():
    drawn = [steps(i, select="random", fraction=0.5) for i in range(40)]
    assert all(len(s) == 4 and s == sorted(set(s)) for s in drawn)
    assert {n for s in drawn for n in s} == set(ELIGIBLE.tolist()) and len({tuple(s) for s in drawn}) > 10
    assert drawn[7] == steps(7, select="random", fraction=0.5)


def test_a_window_is_a_run_of_neighbours_and_moves_over_all():
    windows = [steps(i, select="window", fraction=0.4) for i in range(60)]
    whole = ELIGIBLE.tolist()
    starts = {whole.index(w[0]) for w in windows}
    assert all(w == whole[whole.index(w[0]) :][:3] for w in windows) and starts == set(range(6))


def test_at_least_one_step_is_drawn():
    assert len(steps(0, select="random", fraction=0.01)) == len(steps(0, select="window", fraction=0.01)) == 1


def test_eligible_steps_draw_noise():
    """The last step of cps ends at t = 0 with no noise."""
    stats = make_sampler("cps").stats(flow_grid(5))
    assert eligible_steps(stats, TrainSettings()).tolist() == [0, 1, 2, 3]
    assert eligible_steps(stats, TrainSettings(select="first", fraction=0.5)).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="nothing would be trained"):
        eligible_steps(make_sampler("cps").stats(flow_grid(1)), TrainSettings())


def test_a_range_parts_the_sampling():
    stats = make_sampler("cps").stats(flow_grid(10))
    parts = [eligible_steps(stats, TrainSettings(within=pair)).tolist() for pair in ((0, 0.3), (0.3, 0.7), (0.7, 1))]
    assert parts == [[0, 1, 2], [3, 4, 5, 6], [7, 8]]
    with pytest.raises(ConfigError, match=r"train.within \(0.9, 1.0\): nothing would be trained"):
        eligible_steps(stats, TrainSettings(within=(0.9, 1)))


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_minibatches_part_the_pictures(updates):
    pictures = torch.tensor([0, 1, 3, 4, 6, 7])
    parts = minibatches(pictures, updates, 0, 5, 0)
    assert len(parts) == updates and {len(part) for part in parts} == {6 // updates}
    assert torch.cat(parts).sort().values.tolist() == pictures.tolist()
    assert updates > 1 or parts[0].tolist() == pictures.tolist()
    if updates > 1:
        others = [minibatches(pictures, updates, 0, iteration, epoch) for iteration, epoch in ((5, 1), (6, 0))]
        assert all(torch.cat(parts).tolist() != torch.cat(other).tolist() for other in others)


def test_no_minibatch_is_empty():
    assert [len(part) for part in minibatches(torch.tensor([4, 2]), 6, 0, 0, 0)] == [1, 1]
    assert minibatches(torch.tensor([], dtype=torch.long), 2, 0, 0, 0) == []


@pytest.mark.parametrize("size", [1, 2, 4, 5, 8, 100])
def test_micro_batches_hold_every_pair_once(size):
    pictures = torch.tensor([7, 1, 4, 2, 5])
    batches = list(micro_batches(pictures, 3, size))
    pairs = [pair for rows, positions in batches for pair in zip(rows.tolist(), positions.tolist(), strict=True)]
    assert sorted(pairs) == sorted((p, s) for p in pictures.tolist() for s in range(3))
    assert all(1 <= len(rows) <= size for rows, _ in batches)


def test_a_micro_batch_of_the_rollouts_size_is_the_rollouts_call():
    batches = list(micro_batches(torch.arange(4), 3, 2))
    assert [(rows.tolist(), positions.tolist()) for rows, positions in batches] == [
        (call, [step] * 2) for call in ([0, 1], [2, 3]) for step in range(3)
    ]
