"""Published architectures as pipeline folders without weights, for plans that need no download.

The JSON files beside this one hold facts of the public model cards: classes, widths, layers, heads.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

HERE = Path(__file__).parent / "architectures"
NAMES = tuple(sorted(path.stem for path in HERE.glob("*.json")))


def write_folder(name: str, folder: Path) -> Path:
    """Write an architecture as a pipeline folder whose weight files hold nothing; `pcpo plan --no-probe` reads it."""
    for file, content in json.loads((HERE / f"{name}.json").read_text("utf-8")).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), "utf-8")
        if file.endswith("/config.json"):
            save_file({}, path.parent / "model.safetensors")
    return folder
