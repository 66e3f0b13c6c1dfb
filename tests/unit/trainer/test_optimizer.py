"""AdamW in 8 bits: where bitsandbytes is installed it trains and resumes, elsewhere it is refused with its extra."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from pcpo.errors import ConfigError
from training import run, same, weights

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


def eight_bit(trainer, output, iterations, **options):
    return trainer(
        output=output,
        model={"tune": "full"},  # moments of fewer than 4,096 elements stay float32
        optim={"name": "adamw_8bit"},
        train={"iterations": iterations},
        run={"checkpoint_every": 1},
        **options,
    )


@pytest.mark.skipif(INSTALLED, reason="is installed")
def test_it_is_refused_where_it_is_missing(trainer):
    with pytest.raises(ConfigError, match=r"adamw_8bit needs bitsandbytes.*pcpo\[bitsandbytes\]"):
        eight_bit(trainer, "run", 1)


@pytest.mark.skipif(not INSTALLED, reason="needs bitsandbytes")
@pytest.mark.filterwarnings("ignore")
def test_it_trains_and_resumes_bit_for_bit(trainer):
    straight = eight_bit(trainer, "straight", 2)
    run(straight)
    moments = [state["state1"] for state in straight.state.optimizer.state.values()]
    assert {moment.dtype for moment in moments} == {torch.uint8, torch.float32}
    run(eight_bit(trainer, "stopped", 1))
    resumed = eight_bit(trainer, "stopped", 2, resume=True)
    run(resumed)
    assert same(weights(resumed), weights(straight))
