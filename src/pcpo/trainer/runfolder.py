"""The run folder: made once, never shared by two different runs, never overwritten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pcpo.data.files import write_text_atomic
from pcpo.errors import RunFolderError, unknown_name
from pcpo.trainer import protocol
from pcpo.trainer.checkpoint import newest_config
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import dump_config, load_config, validate
from pcpo.trainer.lock import LOCK, refuse_if_locked

# Settings that say how a run is executed, not what it computes: they may differ on resume.
EXECUTION_KEYS = {
    "evaluation",
    "run.checkpoint_every",
    "run.device",
    "run.keep_checkpoints",
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


def output_folder(config: Config) -> Path:
    """The configured run folder, or the default one."""
    return Path(config.run.output) if config.run.output else default_output(config)


def check_output(config: Config, resume: bool, allow_change: Sequence[str] = ()) -> Path:
    """The run folder that may be used, without touching it.

    `allow_change` names settings, or sections of them, that may differ from the stored run's.

    Raises RunFolderError: the folder cannot be made, another process runs in it, it holds something else, it holds a
    run and `resume` is off, or there is nothing to resume, the settings of the stored run differ, or it has gone
    further than `train.iterations`. Raises ConfigError when `allow_change` names no setting.
    """
    folder = output_folder(config)
    _check_keys(config, allow_change)
    occupied = _is_occupied(folder)
    refuse_if_locked(folder)
    if not resume:
        _refuse_occupied(folder, occupied)
        return folder
    if not (folder / "config.yaml").is_file():
        raise RunFolderError("holds no run to resume", where=str(folder), fix="start it without --resume")
    newest = newest_config(folder / "checkpoints")
    stored = load_config(folder / "config.yaml") if newest is None else validate(newest[1], str(folder))
    refuse_changes(stored, config, folder, allow_change)
    done = newest[0] if newest is not None else 0
    if done > config.train.iterations:
        raise RunFolderError(
            f"has already done {done} iterations, more than train.iterations {config.train.iterations}",
            where=str(folder),
            fix=f"set train.iterations to {done} or more",
        )
    return folder


def refuse_changes(stored: Config, config: Config, folder: Path, allow_change: Sequence[str] = ()) -> None:
    """Raise RunFolderError with the differences that are not allowed."""
    changed = {
        key: difference
        for key, difference in _differences(stored, config).items()
        if not any(f"{key}.".startswith(f"{allowed}.") for allowed in allow_change)
    }
    if changed:
        raise RunFolderError(
            f"the stored run has other settings: {'; '.join(list(changed.values())[:8])}{' ...' * (len(changed) > 8)}",
            where=str(folder),
            fix="resume with the settings of its config.yaml, accept a change with --allow-change KEY, "
            "or choose another --output",
        )


def differences(old: Config, new: Config) -> list[str]:
    """`key: old -> new` of the settings that change what a run computes."""
    return list(_differences(old, new).values())


def _differences(old: Config, new: Config) -> dict[str, str]:
    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    return {
        key: f"{key} {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{e}.") for e in EXECUTION_KEYS)
    }


def claim(folder: Path, config: Config, resume: bool) -> None:
    """Take the locked folder for this run: write the resolved configuration, and remove what a dead process left.

    Raises RunFolderError when it cannot be written, or another process has made it its run in the meantime.
    """
    if not resume:
        _refuse_occupied(folder, _is_occupied(folder))
    with _tidying(folder):
        protocol.sweep(folder / "checkpoints")
    create(folder, config)


def put_aside(damaged: Sequence[Path]) -> None:
    """Rename damaged checkpoints, so that they are not taken for kept ones. Raises RunFolderError."""
    for folder in damaged:
        with _tidying(folder):
            protocol.put_aside(folder)


@contextmanager
def _tidying(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot be tidied ({error.strerror})", where=str(folder), fix="check permissions"
        ) from error


def create(folder: Path, config: Config) -> None:
    """Make the run folder and write the resolved configuration."""
    write_text_atomic(folder / "config.yaml", dump_config(config), durable=True)


def check_space(folder: Path, needed: int) -> None:
    """Raise RunFolderError when less than `needed` bytes are free where the folder is, or will be."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise RunFolderError(
            f"has {free / 1e6:,.0f} MB free, and the run's checkpoints and pictures need {needed / 1e6:,.0f} MB",
            where=str(nearest),
            fix="free space, choose another --output, or lower run.keep_checkpoints",
        )


def _check_keys(config: Config, keys: Sequence[str]) -> None:
    known = set(flat(config.model_dump(mode="json")))
    sections = {key.rpartition(".")[0] for key in known}
    for key in keys:
        if key not in known and not any(f"{section}.".startswith(f"{key}.") for section in sections):
            raise unknown_name("setting", key, known)


def _refuse_occupied(folder: Path, occupied: bool) -> None:
    if occupied and (folder / "config.yaml").is_file():
        raise RunFolderError(
            "already holds a run", where=str(folder), fix="continue it with --resume, or choose another --output"
        )
    if occupied:
        raise RunFolderError("is not empty and not a run", where=str(folder), fix="choose another --output")


def _is_occupied(folder: Path) -> bool:
    """Whether the folder holds anything; RunFolderError when it is none, or could not be written."""
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise RunFolderError("is a file", where=str(nearest), fix="choose another --output")
        if not os.access(nearest, os.W_OK):
            raise RunFolderError("cannot be written to", where=str(nearest), fix="choose another --output")
        return nearest == folder and any(path.name != LOCK for path in folder.iterdir())
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
