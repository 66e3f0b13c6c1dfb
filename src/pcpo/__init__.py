"""Align text-to-image diffusion and flow models with rewards by proportionate credit policy optimization.

`PCPOTrainer` tunes a model; `load_config` reads presets and YAML files; `Config` is the whole configuration;
`check_adapter` tries a new model family. They are imported on first use, so `import pcpo` costs
nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Libraries below this one report their use to their makers unless told not to, and read these variables when they are
# imported: diffusers imports onnxruntime where it is installed. Nothing of a run is to leave the machine unasked.
for _switch in ("HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")

if TYPE_CHECKING:
    from pcpo.models.checker import check_adapter
    from pcpo.trainer.config import Config
    from pcpo.trainer.configfile import load_config
    from pcpo.trainer.loop import PCPOTrainer
    from pcpo.types import RewardResult

_HOMES = {
    "Config": "pcpo.trainer.config",
    "PCPOTrainer": "pcpo.trainer.loop",
    "RewardResult": "pcpo.types",
    "check_adapter": "pcpo.models.checker",
    "load_config": "pcpo.trainer.configfile",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pcpo' has no attribute {name!r}")


__all__ = ["Config", "PCPOTrainer", "RewardResult", "__version__", "check_adapter", "load_config"]
