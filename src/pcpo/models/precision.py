"""Which weights are kept in which dtype."""

from __future__ import annotations

import torch
from torch import nn


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
