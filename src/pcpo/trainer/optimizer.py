"""AdamW, with moments in float32 or in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from pcpo.errors import ConfigError
from pcpo.trainer.config import OptimSettings


def make_optimizer(parameters: Sequence[nn.Parameter], settings: OptimSettings) -> torch.optim.Optimizer:
    """The configured AdamW on float32 parameters. Raises ConfigError where bitsandbytes is missing."""
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    if settings.name == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise ConfigError(
                "adamw_8bit needs bitsandbytes, which is not installed",
                where="optim.name",
                fix='pip install "pcpo[bitsandbytes]", or use adamw',
            ) from None
        kind = AdamW8bit
    return kind(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
