"""A compiled backbone samples and trains as the plain one does."""

from __future__ import annotations

import pytest
import torch

from training import run, weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # both of torch's own compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_compiled_training_is_the_same_training(trainer, family):
    made = []
    for compiled in (False, True):
        it = trainer(family, output=str(compiled), run={"compile": compiled}, train={"iterations": 2, "updates": 2})
        log = run(it)
        assert [event.ratio_error for event in log.iterations] == [0.0, 0.0]
        made.append((weights(it), [event.reward_mean for event in log.iterations]))
    torch.testing.assert_close(made[0][1], made[1][1], rtol=1e-4, atol=1e-4)
    for name, value in made[0][0].items():
        # AdamW's first steps have the size of the learning rate, whatever the gradient
        torch.testing.assert_close(made[1][0][name], value, rtol=0, atol=5e-3)
