"""What the first page and the evidence page claim is what the main study's report says."""

from __future__ import annotations

import json
import re

import pytest

from pages import DOCS, ROOT

REPORT = json.loads((DOCS / "results" / "main" / "report" / "report.json").read_text("utf-8"))
OVERALL = {row["model"]: row["ratio"] for row in REPORT["overall"] if row["arm"] == "pcpo"}
README, EVIDENCE = ROOT / "README.md", DOCS / "results" / "evidence.md"


def fewer(model):
    """(percent fewer iterations, least, most) of PCPO over all rewards."""
    ratio = OVERALL[model]
    return tuple(round(100 * (1 - ratio[key])) for key in ("mean", "high", "low"))


@pytest.mark.parametrize(
    ("page", "claim", "model"),
    [
        (README, r"(\d+) % fewer iterations to a target on `emoji-sd` \[(\d+), (\d+)\]", "emoji-sd"),
        (README, r"(\d+) % fewer on `emoji-sd3` with Flow-SDE \[(\d+), (\d+)\]", "emoji-sd3-flow"),
        (EVIDENCE, r"\*\*yes\*\*: (\d+) % fewer \[(\d+), (\d+)\] over three rewards \(times cut", "emoji-sd"),
        (EVIDENCE, r"\*\*yes\*\*: (\d+) % fewer \[(\d+), (\d+)\] over three rewards; 30", "emoji-sd3-flow"),
        (EVIDENCE, r"not told from none: (\d+) % fewer \[(-?\d+), (\d+)\]", "emoji-sd3-dance"),
    ],
)
def test_iterations_to_a_target(page, claim, model):
    (found,) = re.findall(claim, " ".join(page.read_text("utf-8").split()))
    assert tuple(map(int, found)) == fewer(model)


def test_an_interval_that_leaves_out_none_is_called_so():
    assert {model: ratio["high"] < 1 for model, ratio in OVERALL.items()} == {
        "emoji-sd": True,
        "emoji-sd3-flow": True,
        "emoji-sd3-dance": False,
    }
