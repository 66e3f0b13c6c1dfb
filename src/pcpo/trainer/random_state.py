"""The random states of the process: a reward may draw from them, so they are part of a run.

Training itself draws nothing from them: its noises, prompts and choice of steps are functions of seed and iteration.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """States of Python, numpy, torch and every accelerator that is in use.

    tensors   "torch" and "DEVICE.N" -> uint8 [n]
    record    "python" and "numpy", ready for JSON
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]

    @classmethod
    def capture(cls) -> RandomState:
        """The states as they are now."""
        tensors = {"torch": torch.get_rng_state()}
        device = _accelerator()
        if device is not None and getattr(device[0], "is_initialized", lambda: True)():
            module, name = device
            tensors |= {f"{name}.{n}": module.get_rng_state(n).cpu() for n in range(module.device_count())}
        version, internal, gauss = random.getstate()
        kind, key, *rest = np.random.get_state(legacy=True)
        return cls(tensors, {"python": [version, list(internal), gauss], "numpy": [kind, key.tolist(), *rest]})  # type: ignore[union-attr]

    def restore(self) -> None:
        """Put them back. Raises KeyError, TypeError, ValueError or RuntimeError for what `capture` did not make.

        Accelerators that this machine does not have are passed over: there is nothing to go on with.
        """
        version, internal, gauss = self.record["python"]
        kind, key, *rest = self.record["numpy"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))
        torch.set_rng_state(self.tensors["torch"])
        device = _accelerator()
        if device is not None:
            module, name = device
            for n in range(module.device_count()):
                if f"{name}.{n}" in self.tensors:
                    module.set_rng_state(self.tensors[f"{name}.{n}"], n)


def _accelerator() -> tuple[ModuleType, str] | None:
    """torch's module of the accelerator, and its name; None where there is none."""
    if not torch.accelerator.is_available():
        return None
    name = torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    return torch.get_device_module(name), name
