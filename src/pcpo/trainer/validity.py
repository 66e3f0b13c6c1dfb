"""Stop a run whose reward leaves too many pictures out: what is left would be another training set."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from pcpo.errors import RewardError


class ValidityGuard:
    """Counts the pictures that the reward left out over a window of iterations.

    share   of a whole window's pictures that may be left out, 0 to 1
    window  iterations; until so many are done, the limit is already that of a whole window, so that a single failed
            batch at the beginning of a run does not end it and a reward that fails all the time does
    """

    def __init__(self, share: float, window: int) -> None:
        self.share, self.window = share, window
        self._counts: deque[tuple[int, int]] = deque(maxlen=window)

    def check(self, valid: Tensor, where: str) -> None:
        """Count an iteration's pictures, valid [B] bool. Raises RewardError when too many were left out."""
        size = len(valid)
        self._counts.append((size - int(valid.sum()), size))
        invalid = sum(count for count, _ in self._counts)
        if invalid > self.share * size * self.window:
            seen = sum(total for _, total in self._counts)
            raise RewardError(
                f"left out {invalid} of the last {seen} pictures ({invalid / seen:.0%} in {len(self._counts)} "
                f"iterations), more than {self.share:.1%} of {self.window} iterations",
                where=where,
                fix="look at what the reward says and at its server; if it may abstain that often, raise "
                "train.max_invalid",
            )


__all__ = ["ValidityGuard"]
