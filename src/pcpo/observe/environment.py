"""What a run ran on: versions and hardware. Environment variables, user and host names stay out of it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("pcpo", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors")


def environment() -> dict[str, Any]:
    """Describe the interpreter, the machine and the libraries, without importing any of the libraries.

    The accelerator is named when torch has been imported by the caller and sees one.
    """
    described: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "device": _device_name(),
    }
    return described | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str | None:
    """Installed version; None when the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Model name of the processor, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _device_name() -> str:
    torch = sys.modules.get("torch")
    if torch is None:
        return "cpu"
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
