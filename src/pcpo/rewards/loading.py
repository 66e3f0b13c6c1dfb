"""Loading the parts of reward models: a local folder or a hub id, safetensors only, no code from the repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pcpo import hub
from pcpo.errors import RewardError, one_line
from pcpo.rewards.preprocess import Preprocess

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FILES = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "model.safetensors")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def is_local(name: str, where: str) -> bool:
    """Whether a folder of this name is there; else it must be a hub id that is cached or in reach (RewardError)."""
    if name != "" and Path(name).is_dir():
        return True
    if not HUB_ID.fullmatch(name):
        raise RewardError("no such folder", where=where, fix="check the path, or give a hub id (owner/name)")
    try:
        hub.ask(name, *FILES)
    except Exception as error:  # the hub client's HTTP library, and so its errors, differ between versions
        raise hub.unreachable(RewardError, where, error) from None
    return False


@contextmanager
def loading(where: str, needs: str, local: bool) -> Iterator[None]:
    """Turn whatever goes wrong inside into a RewardError that says what is needed."""
    try:
        yield
    except RewardError:
        raise
    # damaged files and an unreachable hub surface as OSError, ValueError, KeyError, SafetensorError, ...
    except Exception as error:
        raise RewardError(
            f"cannot be loaded ({type(error).__name__}: {one_line(error)})",
            where=where,
            fix=f"give a folder with {needs}"
            + ("" if local else "; there is no folder of this name, and the hub did not give the model"),
        ) from error


def check_files(name: str, where: str, needs: str, *, weights: bool = True) -> None:
    """Whether a folder, or a hub id, could be a model, by its small files: weights are looked for, and not read.

    Raises RewardError when it is missing, out of reach, or has no safetensors weights.
    """
    from transformers.utils import cached_file

    local = is_local(name, where)
    if not local:
        with loading(where, needs, local):
            cached_file(name, "config.json" if weights else "preprocessor_config.json")
        return
    if weights and not (Path(name) / "config.json").is_file():
        raise RewardError("the folder has no config.json", where=where, fix=f"give a folder with {needs}")
    if weights and not any(Path(name).glob("*.safetensors")):
        raise RewardError("the folder has no safetensors weights", where=where, fix=f"give a folder with {needs}")


def load_model(auto_class: Any, name: str, dtype: str, where: str, needs: str) -> Any:
    """The model of a folder or hub id by one of transformers' Auto classes, in evaluation mode, frozen.

    Raises RewardError when it is missing, out of reach, damaged, of another kind, or lacks weights.
    """
    if dtype not in DTYPES:
        raise RewardError(f"dtype {dtype!r}", where=where, fix=f"use one of: {', '.join(DTYPES)}")
    from transformers.utils import logging  # importing it takes seconds

    logging.disable_progress_bar()  # one bar a model, in the middle of what pcpo prints
    local = is_local(name, where)
    with loading(where, needs, local):
        model, info = auto_class.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            dtype=DTYPES[dtype],
            output_loading_info=True,
        )
    if info["missing_keys"]:
        keys = sorted(info["missing_keys"])
        raise RewardError(
            f"{len(keys)} weights are missing, such as {keys[0]!r}", where=where, fix="save the whole model"
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(name: str, where: str, needs: str) -> Any:
    """The tokenizer of a folder or hub id."""
    from transformers import AutoTokenizer  # importing it takes seconds

    local = is_local(name, where)
    with loading(where, needs, local):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    # where the files are missing, transformers makes one of the configured class that knows no word
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise RewardError(
            "cannot be loaded (the tokenizer has no vocabulary)", where=where, fix=f"give a folder with {needs}"
        )
    return tokenizer


def load_preprocess(name: str, where: str, needs: str) -> Preprocess:
    """The picture preprocessing of a folder or hub id."""
    local = is_local(name, where)
    with loading(where, needs, local):
        return Preprocess.from_config(preprocessor_config(name, local), where=where)


def preprocessor_config(name: str, local: bool) -> dict[str, Any]:
    """The image processor's settings; a folder saved as a processor keeps them in processor_config.json."""
    from transformers.utils import cached_file

    for file in ("preprocessor_config.json", "processor_config.json"):
        path = cached_file(name, file, local_files_only=local, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
            return config.get("image_processor", config)
    raise FileNotFoundError("no preprocessor_config.json")


__all__ = [
    "DTYPES",
    "check_files",
    "is_local",
    "load_model",
    "load_preprocess",
    "load_tokenizer",
    "loading",
    "preprocessor_config",
]
