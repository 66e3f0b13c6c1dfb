"""Save and restore the state of a run: tensors in safetensors, the rest in JSON, a folder renamed into place.

A checkpoint folder is complete or absent. The base model is not stored: it is named by the configuration.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pcpo.errors import CheckpointError, one_line

FORMAT = 1


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write `folder` (named by its iteration) and drop all but the newest `keep` checkpoints beside it."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file({**tensors, "random.torch": torch.get_rng_state()}, temporary / "state.safetensors")
    version, internal, gauss = random.getstate()
    record = {**state, "format": FORMAT, "random.python": [version, list(internal), gauss]}
    (temporary / "state.json").write_text(json.dumps(record), "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    for old in list_checkpoints(folder.parent)[:-keep]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(parent: Path) -> list[Path]:
    """Finished checkpoint folders, oldest first."""
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.name.isdigit() and (p / "state.json").is_file())


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint; restores torch's and Python's random state. Raises CheckpointError."""
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        tensors = load_file(folder / "state.safetensors")
        if state.pop("format") != FORMAT:
            raise CheckpointError("was written by another version", where=str(folder))
        version, internal, gauss = state.pop("random.python")
        random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(tensors.pop("random.torch"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot be read: {one_line(error)}",
            where=str(folder),
            fix="delete this folder to resume from the one before",
        ) from error
    return tensors, state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter state as named tensors; hyper-parameters come from the configuration."""
    return {
        f"optimizer.{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
