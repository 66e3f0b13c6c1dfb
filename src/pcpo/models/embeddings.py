"""Encoded prompts on disk: one safetensors file per prompt, checked when it is read, shared by any number of runs.

A file's name is a hash of everything that its content follows from: the weights and tokenizers that encode, the family,
the number of tokens, the libraries' versions and the prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pcpo.data.files import atomic_path

SAMPLED = 1024  # elements of a weight that tell it from another
PROBE = "A red apple, 3 cats & a sign that says 'OPEN'."


class DiskEmbeddings:
    """Mapping from a prompt (None: the unconditional half) to its tensors [1, ...], in files under `folder`.

    Safe under several processes: files are whole or absent, and two that write the same prompt write the same bytes.
    A file that is damaged or belongs to another key is as good as none: it is encoded again.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        self.folder, self.identity = Path(folder).expanduser(), identity

    def get(self, prompt: str | None) -> dict[str, Tensor] | None:
        """The tensors of a prompt, on the CPU; None where there is no sound file."""
        path = self.path(prompt)
        try:
            with safe_open(path, "pt") as file:
                record = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        expected = {"identity": self.identity, "prompt": json.dumps(prompt), "digest": _digest(tensors)}
        return tensors if record == expected else None

    def __setitem__(self, prompt: str | None, tensors: dict[str, Tensor]) -> None:
        """Store the tensors of a prompt. Raises RunFolderError where the folder cannot be written."""
        record = {"identity": self.identity, "prompt": json.dumps(prompt), "digest": _digest(tensors)}
        with atomic_path(self.path(prompt)) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, record)

    def path(self, prompt: str | None) -> Path:
        """Where the tensors of a prompt are kept."""
        key = hashlib.sha256(json.dumps([self.identity, prompt]).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"


def encoder_identity(family: str, parts: Iterable[Any], text_length: dict[str, int]) -> str:
    """A hash that differs where embeddings may: text encoders and tokenizers, family, length, library versions.

    Weights are told apart by their shapes and a sample of their elements, so a 10 GB encoder takes a second.
    """
    found: list[Any] = [family, sorted(text_length.items()), [version(name) for name in ("diffusers", "transformers")]]
    for part in parts:
        if isinstance(part, nn.Module):
            found += [type(part).__name__, [_weight(name, p) for name, p in part.named_parameters()]]
        elif hasattr(part, "convert_ids_to_tokens"):
            found += [type(part).__name__, len(part), part.model_max_length, part(PROBE).input_ids]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _weight(name: str, parameter: Tensor) -> list[Any]:
    flat = parameter.detach().flatten()
    sample = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
    return [name, list(parameter.shape), str(parameter.dtype), hashlib.sha256(_bytes(sample)).hexdigest()]


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(_bytes(value.contiguous()))
    return found.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.reshape(-1).view(torch.uint8).numpy().tobytes()  # numpy has no bfloat16
