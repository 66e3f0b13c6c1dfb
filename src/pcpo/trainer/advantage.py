"""The configured advantage of one or several rewards, with the running statistics that one of them keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pcpo.advantages import ADVANTAGES, RunningStats, standardised
from pcpo.errors import CheckpointError
from pcpo.trainer.config import AdvantageSettings
from pcpo.types import RewardResult


class Advantages:
    """Rewards of an iteration -> advantages. R_k are the parts of a WeightedSum, w_k their weights, by name.

    weighted_sum  A(sum_k w_k R_k)                        of raw values: their scales matter
    normalised    A(sum_k w_k (R_k - mean_group)/std_group)   every part counts by its weight, whatever its scale
    advantages    sum_k w_k A(R_k)                        each part clipped by itself; the sum is not clipped again

    A is the configured advantage. All three agree for one part of weight 1, normalised up to the epsilon in A. A
    picture counts when no part abstains on it.
    """

    def __init__(self, settings: AdvantageSettings, mix: str, weights: dict[str, float]) -> None:
        self.settings, self.mix, self.weights = settings, mix, weights
        names = weights if mix == "advantages" else ("",)
        stateful = ADVANTAGES[settings.name].stateful
        self.running = {n: RunningStats(settings.buffer, settings.min_count) for n in names} if stateful else {}

    def __call__(
        self, result: RewardResult, groups: tuple[int, int], prompts: Sequence[str]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(advantages, what they were made of, valid), each [P, G], of results [B] and prompt texts [P].

        A group whose entries in the second are all equal teaches nothing.
        """
        valid = result.valid.view(groups)
        if self.mix == "weighted_sum":
            mixed = result.values.view(groups)
            return self._advantage("", mixed, valid, prompts), mixed, valid
        parts = {name: result.info[name].view(groups) for name in self.weights}
        if self.mix == "advantages":
            total = sum(w * self._advantage(n, parts[n], valid, prompts) for n, w in self.weights.items())
            assert isinstance(total, Tensor)
            return total, total, valid
        mixed = torch.stack([w * standardised(parts[n], valid) for n, w in self.weights.items()]).sum(0)
        return self._advantage("", mixed, valid, prompts), mixed, valid

    def _advantage(self, part: str, rewards: Tensor, valid: Tensor, prompts: Sequence[str]) -> Tensor:
        clip = self.settings.clip
        if self.running:
            return self.running[part](rewards, valid, prompts, clip)
        return ADVANTAGES[self.settings.name].function(rewards, valid, clip=clip)

    def state_dict(self) -> dict[str, Any] | None:
        """The running statistics, ready for JSON; None where there are none."""
        if not self.running:
            return None
        if self.mix == "advantages":
            return {name: running.state_dict() for name, running in self.running.items()}
        return self.running[""].state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; CheckpointError if it is not of that form."""
        if self.mix != "advantages":
            self.running[""].load_state_dict(state)
            return
        if not isinstance(state, dict) or set(state) != set(self.running):
            raise CheckpointError("has statistics of other rewards", where="advantage running")
        for name, running in self.running.items():
            running.load_state_dict(state[name])
