"""The configured advantage, with the running statistics that one of them keeps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pcpo.advantages import ADVANTAGES, RunningStats
from pcpo.trainer.config import AdvantageSettings


class Advantages:
    """rewards [P, G], valid [P, G], prompt texts [P] -> advantages [P, G]."""

    def __init__(self, settings: AdvantageSettings) -> None:
        self.settings = settings
        self.running = RunningStats(settings.buffer, settings.min_count) if settings.name == "running" else None

    def __call__(self, rewards: Tensor, valid: Tensor, prompts: Sequence[str]) -> Tensor:
        """Advantages of one iteration."""
        if self.running is not None:
            return self.running(rewards, valid, prompts, self.settings.clip)
        return ADVANTAGES[self.settings.name].function(rewards, valid, clip=self.settings.clip)
