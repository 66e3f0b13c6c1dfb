"""Refuse settings that do not fit a model before any of its weights is read."""

from __future__ import annotations

from pcpo.plan.skeleton import skeleton
from pcpo.trainer.config import Config
from pcpo.trainer.parts import Algorithm, build_algorithm


def check_model(config: Config) -> Algorithm:
    """Build the configured model without weights, with its LoRA, its time grid and the credit on it, which is returned.

    Reads configuration files only, in about a second. Raises ModelError and ConfigError: a resolution that is no
    multiple of the patch, a scheduler without a grid we can use, LoRA targets that match nothing, a family that the
    sampler is not for, switches that a part does not have.
    """
    return build_algorithm(config, skeleton(config))
