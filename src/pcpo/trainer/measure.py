"""Per-step gradients of two halves of a set of pictures: what the signal and the noise of a step are estimated from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pcpo.credit.adaptive import signal_and_noise
from pcpo.trainer.schedule import micro_batches, own_rows

LIMIT = 1 << 27  # numbers in the 2 S rows, 512 MiB; beyond, every n-th coordinate of the gradient stands for all


def split_groups(pictures: Tensor, group_size: int) -> list[Tensor]:
    """Two halves of the pictures [N], by prompt group; one part where all are of the same group.

    A group is never torn: the advantages of its pictures depend on each other.
    """
    group = pictures // group_size
    groups = group.unique()
    if len(groups) < 2:
        return [pictures]
    first = group < groups[len(groups) // 2]
    return [pictures[first], pictures[~first]]


def kept_every(parameters: Sequence[nn.Parameter], steps: int) -> int:
    """Stride of the coordinates kept, so that 2 S rows stay within `LIMIT`; 1 for any LoRA of usual size.

    Odd, so that it does not keep to a few columns of the weight matrices, whose widths are even.
    """
    return -(-2 * steps * sum(p.numel() for p in parameters) // LIMIT) | 1


def flat(gradients: Sequence[Tensor], stride: int) -> Tensor:
    """One vector [n] float32 of every `stride`-th coordinate, scaled so that inner products stand for all."""
    return torch.cat([gradient.detach().flatten()[::stride].float() for gradient in gradients]) * stride**0.5


class StepGradients:
    """Reads the gradient of every (half, step) of one minibatch off the update that accumulates it.

    parameters  what is trained; their .grad must be unset at the start
    pictures    [N] of the minibatch, of two prompt groups at least
    steps       S
    rows        the pictures that this process holds: `rows` [2, S, n] of all processes add up to those of the minibatch

    The gradient that the update accumulates is the same sum, in another order. Memory is 2 S + 2 times the trained
    parameters in float32, up to `LIMIT` numbers.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], pictures: Tensor, steps: int, group_size: int, rows: slice
    ) -> None:
        self.parameters, self.steps = parameters, steps
        self.halves = split_groups(pictures, group_size)
        self.own = [own_rows(half, rows) for half in self.halves]
        self.stride = kept_every(parameters, steps)
        self._seen = self._gradient()
        self.rows = self._seen.new_zeros(2, steps, len(self._seen))
        self._half = 0

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches of one half and one step each, as `micro_batches` gives them; `take` one before the next."""
        for number, half in enumerate(self.own):
            self._half = number
            for part in half.split(size) if len(half) else ():
                yield from micro_batches(part, self.steps, len(part))

    def take(self, positions: Tensor, loss_scale: float = 1.0) -> None:
        """After the backward pass of a micro-batch: what it added belongs to its half and step."""
        now = self._gradient() / loss_scale
        self.rows[self._half, int(positions[0])] += now - self._seen
        self._seen = now

    def signal_and_noise(self, credit: Tensor) -> tuple[Tensor, Tensor]:
        """[S] each (see `pcpo.credit.adaptive`); credit [S] is that of the loss, the mean over pictures and steps."""
        counts = (len(self.halves[0]), len(self.halves[1]))
        unit = [
            rows * (self.steps * sum(counts) / (count * credit)).to(rows)[:, None]
            for rows, count in zip(self.rows, counts, strict=True)
        ]
        return signal_and_noise(unit[0], unit[1], credit, counts)

    def _gradient(self) -> Tensor:
        return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters], self.stride)
