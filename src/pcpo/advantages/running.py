"""Advantages relative to what each prompt has earned lately (DDPO, 2305.13301)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pcpo.advantages.group import EPS
from pcpo.errors import CheckpointError, ConfigError


class RunningStats:
    """Per-prompt buffers of the last rewards; call it once per iteration, in order.

    buffer_size   rewards kept per prompt
    min_count     below this many, the statistics of the whole batch stand in for the prompt's
    """

    def __init__(self, buffer_size: int = 32, min_count: int = 16) -> None:
        if not 1 <= min_count <= buffer_size:
            raise ConfigError(
                f"min_count {min_count} with a buffer of {buffer_size}",
                where="advantage running",
                fix="use 1 <= min_count <= buffer_size",
            )
        self.buffer_size, self.min_count = buffer_size, min_count
        self._buffers: dict[str, list[float]] = {}

    def __call__(self, rewards: Tensor, valid: Tensor, prompts: Sequence[str], clip: float = 5.0) -> Tensor:
        """Advantages [P, G] float32: (R - mean) / (std + 1e-4) over the prompt's buffer, clipped.

        rewards, valid [P, G]; prompts of length P. The new rewards are added first. A picture on which the
        reward abstained has advantage 0 and is not added. Equal rewards in one group still have an advantage
        if they differ from the prompt's past.
        """
        r = rewards.double().cpu()
        keep = valid.cpu()
        for prompt, row, mask in zip(prompts, r, keep, strict=True):
            buffer = self._buffers.setdefault(prompt, [])
            buffer.extend(row[mask].tolist())
            del buffer[: -self.buffer_size]
        batch = r[keep]
        advantage = torch.zeros_like(r)
        for p, prompt in enumerate(prompts):
            own = torch.tensor(self._buffers[prompt], dtype=torch.float64)
            advantage[p] = _standardise(r[p], own if len(own) >= self.min_count else batch)
        return advantage.clamp(-clip, clip).masked_fill(~keep, 0).float().to(rewards.device)

    def state_dict(self) -> dict[str, list[float]]:
        """Prompt -> its rewards, oldest first; ready for JSON."""
        return {prompt: list(buffer) for prompt, buffer in self._buffers.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Put back what `state_dict` gave. Raises CheckpointError if it is not of that form."""
        if not isinstance(state, dict) or not all(map(_is_buffer, state.values())):
            raise CheckpointError("not prompt -> list of rewards", where="advantage running")
        self._buffers = {prompt: list(buffer)[-self.buffer_size :] for prompt, buffer in state.items()}


def _is_buffer(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(reward, float) for reward in value)


def _standardise(rewards: Tensor, sample: Tensor) -> Tensor:
    if len(sample) == 0 or sample.min() == sample.max():
        return torch.zeros_like(rewards)
    return (rewards - sample.mean()) / (sample.std(correction=0) + EPS)
