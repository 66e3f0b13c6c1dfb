"""Twenty iterations of two tiny pipelines give the committed figures (curves.json; `curves.py` writes it anew).

Tolerances: with AVX2, SSE4 or two threads in place of AVX-512 the figures moved by up to 1e-3 of themselves (a pixel
that rounds the other way moves a reward), approx_kl by 4e-3 and the weights' norm by 1e-6; ten times that is allowed.
Nothing is clipped in these runs, so that no figure hangs on the side of a threshold.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOLERANCE = {"approx_kl": 5e-2, "weight_norm": 2e-5}


def load_script():
    spec = importlib.util.spec_from_file_location("golden_curves", HERE / "curves.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_curve_is_the_committed_one(folders, tmp_path, family):
    expected = json.loads((HERE / "curves.json").read_text("utf-8"))[family]
    actual = load_script().curve(family, folders[family], tmp_path / "run")
    assert actual.keys() == expected.keys() and len(actual["loss"]) == 20
    for name, values in expected.items():
        assert actual[name] == pytest.approx(values, rel=TOLERANCE.get(name, 1e-2), abs=1e-12), name
