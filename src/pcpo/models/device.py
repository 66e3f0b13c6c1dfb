"""Names of devices and precisions, as settings and options give them."""

from __future__ import annotations

import torch

from pcpo.errors import ConfigError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def find_device(name: str, where: str = "run.device") -> torch.device:
    """The device of a name; "auto" is the accelerator, or the CPU where there is none.

    Raises ConfigError, naming the setting `where`, for a device that this machine does not have.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return found or torch.device("cpu")
    if name != "cpu" and (found is None or found.type != name):
        raise ConfigError(f"this machine has no {name} device", where=where, fix="use auto or cpu")
    return torch.device(name)


def find_precision(name: str, where: str = "run.precision") -> torch.dtype:
    """The dtype of a name. Raises ConfigError, naming the setting `where`, for another."""
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision '{name}'", where=where, fix=f"use one of: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
