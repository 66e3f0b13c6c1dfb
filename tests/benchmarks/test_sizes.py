"""The sizes that the benchmarks measure are ones that the embedded models take."""

from __future__ import annotations

import pytest

import savers
import scaling
from overhead import configure
from pcpo.plan.precheck import check_model


@pytest.mark.parametrize("model", ["emoji-sd", "emoji-sd3"])
def test_scaling_measures_sizes_that_the_models_take(model, tmp_path):
    for key, values in scaling.AXES.values():
        for value in values:
            check_model(configure(model, str(tmp_path), [*scaling.SETTINGS, f"{key}={value}"]))


def test_checkpointing_saves_activations():
    assert 0 < savers.activations("emoji-sd", 4, True) < savers.activations("emoji-sd", 4, False)
