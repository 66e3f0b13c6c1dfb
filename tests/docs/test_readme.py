"""The README's example, run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pcpo.observe.events import read_events

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_example_runs_and_its_reward_rises(tmp_path):
    code = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)[0]
    (tmp_path / "example.py").write_text(code, "utf-8")
    subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, timeout=600
    )
    before, *_, after = read_events(tmp_path / "runs/red/events.jsonl").evaluations
    assert after.reward_mean > before.reward_mean
    assert (tmp_path / "apple.png").stat().st_size > 0
