"""Which prompts an iteration uses: shuffled epochs, without state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcpo.data.prompts import Prompt
from pcpo.errors import ConfigError, PromptError


class PromptSampler:
    """Draw prompts in shuffled epochs: a pure function of (seed, iteration), so resuming needs no state.

    Iteration i takes places i * n to (i + 1) * n of the endless row that joins the permutations of
    epochs 0, 1, ... Each epoch holds every prompt once, so a prompt comes again only after all others of
    its epoch were used. A batch that spans two epochs, or is larger than the set, may hold a prompt more
    than once.
    """

    def __init__(self, prompts: Sequence[Prompt] | Sequence[str], seed: int) -> None:
        if not prompts:
            raise PromptError("no prompts to draw from", where="prompt sampler", fix="give at least one")
        if seed < 0:
            raise ConfigError(f"seed {seed} is negative", where="prompt sampler", fix="use a seed >= 0")
        self.prompts = prompts
        self.seed = seed

    def batch(self, iteration: int, num_prompts: int) -> list[int]:
        """Return ``num_prompts`` indices into ``prompts`` for an iteration >= 0.

        Batches tile the epochs only while ``num_prompts`` stays the same from one iteration to the next.
        """
        if iteration < 0 or num_prompts < 1:
            raise ConfigError(
                f"iteration {iteration} with {num_prompts} prompts",
                where="prompt sampler",
                fix="use an iteration >= 0 and at least one prompt per iteration",
            )
        size = len(self.prompts)
        start, stop = iteration * num_prompts, (iteration + 1) * num_prompts
        epochs = range(start // size, (stop - 1) // size + 1)
        row = np.concatenate([self._permutation(epoch) for epoch in epochs])
        offset = epochs[0] * size
        return [int(index) for index in row[start - offset : stop - offset]]

    def _permutation(self, epoch: int) -> np.ndarray:
        """[size] the order of one epoch; the generator is local and mixes (seed, epoch)."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.prompts))


__all__ = ["PromptSampler"]
