"""Which weights are kept in which dtype, and where in memory."""

from __future__ import annotations

import itertools

import torch
from torch import nn

ALIGNMENT = 64  # bytes; of what torch allocates


def part_dtypes(dtype: torch.dtype, tuned: str | None) -> dict[str, torch.dtype]:
    """Parts that stay float32 where the frozen rest is in `dtype`.

    They are what is tuned in full (by its name, None: a LoRA), and the VAE in fp16, where it overflows.
    """
    kept = {tuned: torch.float32} if tuned else {}
    return kept | ({"vae": torch.float32} if dtype == torch.float16 else {})


def cast(part: nn.Module, dtype: torch.dtype) -> None:
    """Cast a part's weights, all but those that transformers keeps in float32 (T5's `wo` overflows in fp16)."""
    part.to(dtype)
    kept = set(getattr(part, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    for name, parameter in part.named_parameters():
        if kept.intersection(name.split(".")):
            parameter.data = parameter.data.float()


def align(part: nn.Module) -> None:
    """Copy weights of the CPU that are not aligned as those that torch allocates.

    Those read from a file lie where it has them, and on some processors a product's last bits depend on that: the same
    weights would sample other pictures after training than when loaded.
    """
    for tensor in itertools.chain(part.parameters(), part.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone(memory_format=torch.preserve_format)
