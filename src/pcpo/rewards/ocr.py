"""Rendered text: how much of the asked text a picture shows, as Flow-GRPO measures it (2505.05470)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcpo.data.prompts import Prompt
from pcpo.errors import PromptError, RewardError, one_line

QUOTED = re.compile('"([^"]*)"|\u201c([^\u201d]*)\u201d')


class OCR:
    """1 - min(d, n) / n in [0, 1]: d the edit distance of the recognised text to the target, n the target's length.

    Both are compared in lower case without spaces. A target that stands whole inside the recognised text has
    d = 0: other text in the picture does not count then. The target of a picture is its metadata's "target", else
    what its prompt has between its first pair of double quotes.

    threads  of the text recognition (PP-OCRv6 of the package rapidocr, on the CPU)

    Needs the extra ``ocr``. Raises RewardError without it, PromptError for a prompt without a target.
    """

    def __init__(self, threads: int = 1) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise RewardError(
                f"rapidocr cannot be imported ({one_line(error)})",
                where="reward 'ocr'",
                fix='pip install "pcpo[ocr]"',
            ) from error
        self.engine = RapidOCR(
            params={
                "Global.log_level": "critical",  # it warns of every picture without text
                "Global.text_score": 0.0,  # as Flow-GRPO, which drops no text that was recognised
                "Det.limit_type": "max",  # its default enlarges the shorter side to 736: five times slower
                "Det.limit_side_len": 960,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Images uint8 [B, 3, H, W]; returns [B] float32."""
        targets = [target_of(prompt, entry) for prompt, entry in zip(prompts, metadata, strict=True)]
        pixels = images.permute(0, 2, 3, 1).numpy()
        scores = [score(self.read(picture), target) for picture, target in zip(pixels, targets, strict=True)]
        return torch.tensor(scores, dtype=torch.float32)

    def read(self, picture: np.ndarray) -> str:
        """The text in a picture uint8 [H, W, 3] RGB, line after line without a break; empty where there is none."""
        bgr = np.ascontiguousarray(picture[:, :, ::-1])
        # all three each time: the engine keeps them from its last call
        found = self.engine(bgr, use_det=True, use_cls=False, use_rec=True)
        return "".join(getattr(found, "txts", None) or ())

    @staticmethod
    def check_prompts(prompts: Sequence[Prompt]) -> None:
        """PromptError for the first prompt without a target."""
        for prompt in prompts:
            target_of(prompt.text, prompt.metadata)


def target_of(prompt: str, metadata: Mapping[str, Any]) -> str:
    """The text that the picture should show; PromptError where none is given."""
    given = metadata.get("target")
    found = QUOTED.search(prompt)
    target = given if given is not None else (found[1] or found[2] or "") if found else ""
    if not isinstance(target, str) or not normalise(target):
        raise PromptError(
            "no text to read" if given is None else f"target {given!r} is no text",
            where=f"prompt {prompt[:80]!r}",
            fix='the reward ocr reads the text in double quotes (a sign that says "OPEN"), or "target" in the metadata',
        )
    return target


def score(recognised: str, target: str) -> float:
    """1 - min(d, n) / n of two texts, in [0, 1] (see `OCR`)."""
    shown, asked = normalise(recognised), normalise(target)
    distance = 0 if asked in shown else edit_distance(shown, asked)
    return 1 - min(distance, len(asked)) / len(asked)


def normalise(text: str) -> str:
    """Lower case, no white space."""
    return "".join(text.lower().split())


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, each 1."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


__all__ = ["OCR", "edit_distance", "normalise", "score", "target_of"]
