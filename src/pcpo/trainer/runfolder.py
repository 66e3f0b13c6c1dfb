"""The run folder: made once, never shared by two different runs, never overwritten."""

from __future__ import annotations

import os
from pathlib import Path

from pcpo.data.files import write_text_atomic
from pcpo.errors import RunFolderError
from pcpo.trainer.checkpoint import list_checkpoints
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import dump_config, load_config

# Settings that say how a run is executed, not what it computes: they may differ on resume.
EXECUTION_KEYS = {
    "evaluation",
    "run.checkpoint_every",
    "run.device",
    "run.output",
    "run.threads",
    "run.tracker",
    "train.invalid_window",
    "train.iterations",
    "train.max_invalid",
}


def default_output(config: Config) -> Path:
    """runs/NAME-SEED."""
    return Path("runs") / f"{config.name}-{config.run.seed}"


def check_output(config: Config, resume: bool) -> Path:
    """The run folder that may be used, without touching it.

    Raises RunFolderError: the folder cannot be made, holds something else, holds a run and `resume` is off, or there is
    nothing to resume, the settings of the stored run differ, or it has gone further than `train.iterations`.
    """
    folder = Path(config.run.output) if config.run.output else default_output(config)
    occupied = _is_occupied(folder)
    stored = folder / "config.yaml"
    if not resume:
        if occupied and stored.is_file():
            raise RunFolderError(
                "already holds a run",
                where=str(folder),
                fix="continue it with --resume, or choose another --output",
            )
        if occupied:
            raise RunFolderError("is not empty and not a run", where=str(folder), fix="choose another --output")
        return folder
    if not stored.is_file():
        raise RunFolderError("holds no run to resume", where=str(folder), fix="start it without --resume")
    changed = differences(load_config(stored), config)
    if changed:
        raise RunFolderError(
            f"the stored run has other settings: {'; '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}",
            where=str(folder),
            fix="resume with the settings of its config.yaml, or choose another --output",
        )
    done = max((int(path.name) for path in list_checkpoints(folder / "checkpoints")), default=0)
    if done > config.train.iterations:
        raise RunFolderError(
            f"has already done {done} iterations, more than train.iterations {config.train.iterations}",
            where=str(folder),
            fix=f"set train.iterations to {done} or more",
        )
    return folder


def differences(old: Config, new: Config) -> list[str]:
    """`key: old -> new` of the settings that change what a run computes."""
    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    return [
        f"{key} {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{e}.") for e in EXECUTION_KEYS)
    ]


def create(folder: Path, config: Config) -> None:
    """Make the run folder and write the resolved configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / "config.yaml", dump_config(config))


def _is_occupied(folder: Path) -> bool:
    """Whether the folder holds anything; RunFolderError when it is none, or could not be written."""
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise RunFolderError("is a file", where=str(nearest), fix="choose another --output")
        if not os.access(nearest, os.W_OK):
            raise RunFolderError("cannot be written to", where=str(nearest), fix="choose another --output")
        return nearest == folder and any(folder.iterdir())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise RunFolderError(
            f"cannot be used ({getattr(error, 'strerror', None) or error})",
            where=repr(str(folder)[:200]),
            fix="choose another --output",
        ) from error


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """A nested mapping as dotted key -> value."""
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, object] = {}
    for key, inner in value.items():
        out.update(flat(inner, f"{prefix}.{key}" if prefix else str(key)))
    return out
