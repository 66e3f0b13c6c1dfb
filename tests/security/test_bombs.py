"""Little input that would cost much: pictures of many pixels, huge prompt files."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pcpo.data.images import MAX_PIXELS
from security.spoilt import GIB, bomb, sparse

BOMB_MIB = 64


def test_a_picture_of_144_megapixels(worker, tmp_path, measured):
    data = bomb()
    assert len(data) < 20_000
    (tmp_path / "bomb.png").write_bytes(data)
    outcome = worker.run("image", tmp_path / "bomb.png")
    assert outcome.typed and "12000 x 12000" in outcome.text, outcome
    assert outcome.mib < BOMB_MIB and outcome.seconds < 5
    measured(
        "image_bomb", bytes=len(data), megapixels=144, growth_mib=outcome.mib, cpu_seconds=round(outcome.seconds, 2)
    )


def test_the_largest_picture_that_is_allowed(worker, tmp_path, measured):
    side = round(MAX_PIXELS**0.5)
    Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / "large.png")
    outcome = worker.run("image", tmp_path / "large.png")
    assert outcome.kind == "ok" and outcome.mib < 512, outcome
    measured("image_bomb", largest_allowed_growth_mib=outcome.mib)


def test_prompt_files_of_a_gibibyte(worker, tmp_path, measured):
    for name in ("p.txt", "p.jsonl"):
        sparse(tmp_path / name)
        outcome = worker.run("prompts", tmp_path / name)
        assert outcome.typed and "larger than" in outcome.text, outcome
        assert outcome.mib < 16 and outcome.seconds < 1
    measured("prompt_file", bytes=GIB, growth_mib=outcome.mib, cpu_seconds=round(outcome.seconds, 2))


def test_a_prompt_file_that_grows_without_end(worker):
    outcome = worker.run("prompts", "/dev/zero")
    assert outcome.typed and outcome.mib < 16, outcome
