"""Find a pipeline and read its header, without loading a weight."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pcpo import hub
from pcpo.errors import ModelError
from pcpo.models.files import check_files

EMBEDDED = {
    "emoji-sd": "Stable Diffusion layout: U-Net, eps-prediction, DDIM; 64 x 64 emoji",
    "emoji-sd3": "Stable Diffusion 3 layout: MM-DiT, flow matching, shift 3; 64 x 64 emoji",
    "emoji-clip": "text-image scorer for the emoji models (a reward, not a pipeline)",
}


# the third stands for the safety checker, which is not loaded
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")


@dataclass(frozen=True)
class ModelHeader:
    """What model_index.json says: the pipeline class, its components (name -> (library, class)), and those it lacks.

    absent: components saved as null, such as the T5 of a Stable Diffusion 3 that was saved without one.
    """

    path: str
    pipeline: str
    components: dict[str, tuple[str, str]]
    absent: tuple[str, ...] = ()


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model."""
    return Path(str(resources.files("pcpo") / "assets" / name))


def resolve(path: str) -> str:
    """The local folder of an embedded name; anything else unchanged."""
    return str(embedded_folder(path)) if path in EMBEDDED else path


def looks_like_hub_id(path: str) -> bool:
    """Whether `path` could be `owner/name` on a model hub; a local folder of that name comes first."""
    parts = path.split("/")
    named = len(parts) == 2 and all(parts) and not path.startswith((".", "/", "~")) and "\\" not in path
    return named and not Path(path).exists()


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: the same real folder, or the same hub id."""
    return _identity(one) == _identity(other)


def _identity(path: str) -> str:
    folder = Path(resolve(path)).expanduser()
    return str(folder.resolve()) if folder.exists() else path


def has_weights(class_name: str) -> bool:
    """Whether a component of this class is a network, rather than a tokenizer, a scheduler or the like."""
    return not any(word in class_name for word in ("Tokenizer", "Scheduler", "Processor", "FeatureExtractor"))


def read_header(path: str) -> ModelHeader:
    """The header of a local pipeline folder or embedded model; hub ids are fetched by their index file only.

    Raises ModelError: missing folder, missing or broken model_index.json, a component without its folder.
    """
    folder = Path(resolve(path)).expanduser()
    if not folder.exists():
        if looks_like_hub_id(path):
            return _header_from(path, _hub_index(path))
        close = difflib.get_close_matches(path, EMBEDDED, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ModelError(f"no such folder{hint}", where=f"model {path}", fix="pcpo models lists what ships")
    if not folder.is_dir():
        raise ModelError("is a file, not a diffusers pipeline folder", where=f"model {path}")
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            "has no model_index.json, so it is not a diffusers pipeline folder",
            where=f"model {path}",
            fix="pass the folder that DiffusionPipeline.save_pretrained wrote",
        )
    check_files([folder])
    try:
        data = json.loads(index.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"is not valid JSON: {error}", where=str(index)) from None
    header = _header_from(path, data)
    missing = [name for name in header.components if not (folder / name).is_dir()]
    if missing:
        raise ModelError(f"lacks the component folders {', '.join(missing)}", where=f"model {path}")
    check_files(folder / name for name in header.components)
    for name, (_, cls) in header.components.items():
        if has_weights(cls) and not any((folder / name).glob("*.safetensors*")):
            raise ModelError("has no safetensors weights", where=str(folder / name))
    return header


def _header_from(path: str, data: Any) -> ModelHeader:
    if not isinstance(data, dict) or not isinstance(data.get("_class_name"), str):
        raise ModelError("model_index.json names no pipeline class", where=f"model {path}")
    pairs = {name: value for name, value in data.items() if isinstance(value, list) and len(value) == 2}
    components = {name: (str(value[0]), str(value[1])) for name, value in pairs.items() if value[0] is not None}
    for name, (library, _) in components.items():
        # diffusers imports the library that is named, and looks for the files in a folder of the component's name
        if not name.isidentifier() or library not in LIBRARIES:
            raise ModelError(
                f"model_index.json names a component {name[:60]!r} of {library[:60]!r}",
                where=f"model {path}",
                fix=f"components come from {' and '.join(LIBRARIES[:2])} only",
            )
    return ModelHeader(path, data["_class_name"], components, tuple(pairs.keys() - components.keys()))


def _hub_index(path: str) -> Any:
    from huggingface_hub import hf_hub_download

    try:
        hub.ask(path, "model_index.json")
        return json.loads(Path(hf_hub_download(path, "model_index.json")).read_text("utf-8"))
    except Exception as error:  # the hub client's HTTP library, and so its errors, differ between versions
        raise hub.unreachable(ModelError, f"model {path}", error) from None
