"""Gather the per-pair metrics of an iteration into per-step and overall figures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pcpo.trainer.distributed import Runtime
from pcpo.types import LossTerms


class Metrics:
    """Collects detached [N] metrics with their step positions; reduced once, at the end, to spare device waits."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self._values: dict[str, list[Tensor]] = {}
        self._pictures = [torch.empty(0, dtype=torch.long)]
        self._positions = [torch.empty(0, dtype=torch.long)]

    def add(self, out: LossTerms, pictures: Tensor, positions: Tensor) -> None:
        """Take the metrics of one micro-batch."""
        self._pictures.append(pictures)
        self._positions.append(positions)
        for name, value in {"loss": out.per_step.detach(), **out.metrics}.items():
            self._values.setdefault(name, []).append(value)

    def extend(self, other: Metrics) -> None:
        """Take all that another one has."""
        self._pictures += other._pictures
        self._positions += other._positions
        for name, values in other._values.items():
            self._values.setdefault(name, []).extend(values)

    def gather(self, runtime: Runtime) -> None:
        """Take in the metrics of all processes: the same in each of them."""
        if runtime.world == 1:
            return
        names = sorted({name for part in runtime.every(lambda: sorted(self._values)) for name in part})
        self._values = {name: [runtime.gather(self._all(name))] for name in names}
        self._pictures, self._positions = [runtime.gather(self.pictures)], [runtime.gather(self.positions)]

    def values(self, name: str) -> Tensor:
        """Every value [n], on its device."""
        return torch.cat(self._values.get(name, [torch.empty(0)]))

    @property
    def pictures(self) -> Tensor:
        """The picture [n] that each value is of."""
        return torch.cat(self._pictures)

    @property
    def positions(self) -> Tensor:
        """The trained step [n] that each value is of."""
        return torch.cat(self._positions)

    def mean(self, name: str) -> float:
        """Mean over all pairs; nan when there are none."""
        return float(self._all(name).mean())

    def max_abs(self, name: str) -> float:
        """Largest magnitude so far; 0 when there are no pairs."""
        values = self._all(name)
        return float(values.abs().max()) if len(values) else 0.0

    def has(self, name: str) -> bool:
        """Whether any micro-batch reported this metric."""
        return name in self._values

    def per_step(self, name: str) -> list[float]:
        """Mean per trained step [S]."""
        return self._step_means(self._all(name)).tolist()

    def std_per_step(self, name: str) -> list[float]:
        """Population standard deviation per trained step [S]."""
        values, positions = self._all(name), self.positions
        centred = values - self._step_means(values)[positions]
        return self._step_means(centred.square()).sqrt().tolist()

    def quantiles_per_step(self, name: str, points: Sequence[float]) -> list[list[float]]:
        """Quantiles [S] per trained step, a list for each of the points; nan where a step has no pair."""
        values, positions = self._all(name), self.positions
        levels = torch.tensor(points, dtype=torch.float64)
        none = torch.full_like(levels, torch.nan)
        columns = [values[positions == step] for step in range(self.num_steps)]
        return torch.stack([c.quantile(levels) if len(c) else none for c in columns], dim=1).tolist()

    def _all(self, name: str) -> Tensor:
        return self.values(name).double().cpu()

    def _step_means(self, values: Tensor) -> Tensor:
        positions = self.positions
        total = torch.zeros(self.num_steps, dtype=torch.float64).index_add_(0, positions, values)
        return total / torch.bincount(positions, minlength=self.num_steps).clamp(min=1)
