"""The OCR reward on pictures that an embedded model makes, through the trainer's own path."""

from __future__ import annotations

import pytest

pytest.importorskip("rapidocr", reason="needs the extra ocr")


def test_a_run_on_the_embedded_prompts_is_scored_and_repeats(tmp_path):
    from pcpo.observe.events import read_events
    from pcpo.trainer.loop import PCPOTrainer

    logs = []
    for name in ("first", "second"):
        settings = {
            "model": {"path": "emoji-sd"},
            "prompts": "ocr_easy",
            "held_out": 0.1,
            "reward": "ocr",
            "sampler": {"steps": 2},
            "batch": {"prompts": 2, "group_size": 2},
            "train": {"iterations": 1},
            "evaluation": {"num_prompts": 2, "per_prompt": 1, "credit_probe": 0, "every": 5},
            "run": {"output": str(tmp_path / name), "device": "cpu"},
        }
        PCPOTrainer(config=settings, quiet=True).train()
        logs.append(read_events(tmp_path / name / "events.jsonl"))
    values = [value for event in logs[0].evaluations for value in event.values]
    assert all(value is not None and 0 <= value <= 1 for value in values)
    assert [event.values for event in logs[0].evaluations] == [event.values for event in logs[1].evaluations]
    assert [row.reward_mean for row in logs[0].iterations] == [row.reward_mean for row in logs[1].iterations]
