"""A run at an iteration: `RUN@ITERATION`, from the checkpoints and evaluations that the run keeps."""

from __future__ import annotations

from pathlib import Path

import torch

from pcpo.errors import RunFolderError, one_line
from pcpo.models.base import Adapter
from pcpo.models.lora import add_lora, load_tuned, trainable
from pcpo.trainer.checkpoint import list_checkpoints, load
from pcpo.trainer.config import ModelSettings


def split_source(source: str) -> tuple[str, int | None]:
    """`RUN@ITERATION` as its run folder and iteration; any other source as it is, with None."""
    folder, at, iteration = source.rpartition("@")
    if at and iteration.isdecimal() and (Path(folder) / "config.yaml").is_file():
        return folder, int(iteration)
    return source, None


def load_iteration(
    adapter: Adapter, run_dir: Path, iteration: int, settings: ModelSettings, name: str = "default"
) -> None:
    """Put the weights of a run's checkpoint on its base model, the EMA where one is kept; a LoRA as `name`.

    Raises RunFolderError when the run keeps no checkpoint of that iteration, or it does not fit, and CheckpointError
    when it is damaged.
    """
    saved = run_dir / "evaluations" / f"{iteration:06d}"  # with evaluation.save; always the weights that were judged
    if load_tuned(adapter, saved, settings.tune, name):
        return
    kept = {int(path.name): path for path in list_checkpoints(run_dir / "checkpoints")}
    if iteration not in kept:
        found = kept.keys() | {int(path.name) for path in saved.parent.glob("*") if path.name.isdecimal()}
        raise RunFolderError(
            f"keeps no weights of iteration {iteration}",
            where=str(run_dir),
            fix=f"kept: {', '.join(map(str, sorted(found))) or 'none'}; evaluation.save=true keeps more",
        )
    if settings.tune == "lora":
        add_lora(adapter, settings.lora.rank, settings.lora.alpha, settings.lora.targets, name)
    else:
        adapter.unwrapped.requires_grad_(True)
    try:
        tensors = load(kept[iteration]).tensors
        prefix = "ema." if any(key.startswith("ema.") for key in tensors) else "weight."
        with torch.no_grad():
            for key, parameter in trainable(adapter.unwrapped):
                parameter.copy_(tensors[prefix + key.replace(f".{name}.", ".default.")])
    except (RuntimeError, KeyError) as error:
        raise RunFolderError(
            f"its weights cannot be loaded ({one_line(error)})",
            where=str(kept[iteration]),
            fix="name another iteration",
        ) from error
    adapter.unwrapped.requires_grad_(False)
