"""The state of a run as files: tensors in safetensors, the rest in JSON (`protocol` makes a whole folder of them).

The base model is not stored: it is named by the configuration, which is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from pcpo.errors import CheckpointError, one_line
from pcpo.trainer import protocol
from pcpo.trainer.random_state import RandomState

RECORD = "state.json"
Read = TypeVar("Read")
GROUPS = ("weight", "optimizer", "ema", "random")  # first part of a tensor's name: the file that holds it


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at the border of two iterations.

    tensors   "weight.NAME", "optimizer.INDEX.NAME", "ema.NAME" -> Tensor
    record    counters and statistics, ready for JSON
    config    settings of the run, ready for JSON
    """

    iteration: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]
    random: RandomState
    config: dict[str, Any] = field(default_factory=dict)


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of settings, whatever their order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode("ascii")).hexdigest()


def save(parent: Path, snapshot: Snapshot) -> Path:
    """Write `parent`/NNNNNN; a valid checkpoint of this iteration stays as it is, a damaged one is put aside.

    Raises CheckpointError when it cannot be written, or holds a value that is not finite; the checkpoints before it are
    as they were.
    """
    folder = parent / f"{snapshot.iteration:06d}"
    tensors = snapshot.tensors | {f"random.{name}": value for name, value in snapshot.random.tensors.items()}
    record = {**snapshot.record, "random": snapshot.random.record, "config": snapshot.config}
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"not saved: {broken[0]} holds a value that is not finite", where=str(folder), fix="go on from an older one"
        )
    parts = {f"{group}.safetensors": partial(_tensor_bytes, group, tensors) for group in GROUPS if _of(group, tensors)}
    try:
        if folder.exists():
            if _is_valid(folder):
                return folder
            protocol.put_aside(folder)
        protocol.write(
            folder,
            snapshot.iteration,
            config_hash(snapshot.config),
            {**parts, RECORD: lambda: json.dumps(record).encode("ascii")},
        )
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise CheckpointError(
            f"cannot be saved ({reason})", where=str(folder), fix="free space or mend the disk; older ones are intact"
        ) from error
    return folder


def list_checkpoints(parent: Path) -> list[Path]:
    """Finished checkpoint folders, oldest first; `load` says whether one is intact."""
    return protocol.list_folders(parent)


def load(folder: Path) -> Snapshot:
    """Read a checkpoint, after every byte of it was verified. Raises CheckpointError."""
    manifest = protocol.verify(folder)
    try:
        record = json.loads(protocol.verify_file(folder, manifest, RECORD).read_text("ascii"))
        tensors: dict[str, Tensor] = {}
        for name in manifest.files:
            if name != RECORD:
                tensors |= load_file(folder / name)
        if config_hash(record["config"]) != manifest.config:
            raise ValueError("settings and manifest do not belong together")
        random = {name.removeprefix("random."): tensors.pop(name) for name in list(tensors) if _is_random(name)}
        return Snapshot(
            manifest.iteration, tensors, record, RandomState(random, record.pop("random")), record.pop("config")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read: {one_line(error)}", where=str(folder)) from error


def load_newest(parent: Path) -> tuple[Snapshot | None, list[CheckpointError]]:
    """The newest valid checkpoint, and why newer ones were passed over; None when there never was one.

    Raises CheckpointError when there are checkpoints and none is valid: to start over would be to lose them.
    """
    refused: list[CheckpointError] = []
    for folder in reversed(list_checkpoints(parent)):
        found = _attempt(load, folder)
        if isinstance(found, Snapshot):
            return found, refused
        refused.append(found)
    if refused:
        raise CheckpointError(
            f"no checkpoint is valid; the newest: {refused[0].what}",
            where=str(parent),
            fix="bring back a copy of one, or start a new run in another folder",
        )
    return None, refused


def newest_config(parent: Path) -> tuple[int, dict[str, Any]] | None:
    """Iteration and settings of the newest checkpoint whose head is intact; None when there is none."""
    found = (_attempt(_head, folder) for folder in reversed(list_checkpoints(parent)))
    return next((head for head in found if not isinstance(head, CheckpointError)), None)


def _head(folder: Path) -> tuple[int, dict[str, Any]]:
    manifest = protocol.read_manifest(folder)
    text = protocol.verify_file(folder, manifest, RECORD).read_text("ascii")
    try:
        return manifest.iteration, dict(json.loads(text)["config"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{RECORD} cannot be read ({one_line(error)})", where=str(folder)) from error


def _attempt(read: Callable[[Path], Read], folder: Path) -> Read | CheckpointError:
    try:
        return read(folder)
    except CheckpointError as error:
        return error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter state as named tensors; hyper-parameters come from the configuration."""
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)  # bitsandbytes counts steps in an int
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in _flat(entry)
    }


def _flat(entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A parameter's state without the level that bitsandbytes puts 8-bit moments into; it loads them without.

    Their code books are one tensor for all parameters, which safetensors refuses, hence the copies.
    """
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from ((inner, part.clone()) for inner, part in value.items())
        else:
            yield name, value


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor | float]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            counts = value.ndim == 0 and not value.is_floating_point()
            state.setdefault(int(index), {})[name] = value.item() if counts else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _of(group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith(f"{group}.")}


def _is_random(name: str) -> bool:
    return name.startswith("random.")


def _tensor_bytes(group: str, tensors: Mapping[str, Tensor]) -> bytes:
    """One file; its tensors are copied to the CPU only now, so that one group at a time is there twice."""
    return to_bytes({name: value.detach().cpu().contiguous() for name, value in _of(group, tensors).items()})


def _is_valid(folder: Path) -> bool:
    try:
        protocol.verify(folder)
    except CheckpointError:
        return False
    return True
