"""Write what a run tuned where other tools take it: a LoRA in their layout, or a whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pcpo.data.files import atomic_folder
from pcpo.errors import ConfigError, RunFolderError, one_line
from pcpo.evaluation.sampling import DEFAULT, Placement, load_run, run_config
from pcpo.export.card import write_card
from pcpo.export.layouts import VERSIONS, check_family, to_layout
from pcpo.models.folders import ModelHeader, read_header, resolve
from pcpo.models.loading import adapter_class
from pcpo.models.lora import LORA_FILE
from pcpo.trainer.config import Config

Format = Literal["diffusers", "kohya", "comfy"]


def export_run(
    run: str | Path,
    layout: Format = "diffusers",
    output: str | Path | None = None,
    *,
    merged: bool = False,
    placement: Placement = DEFAULT,
) -> Path:
    """Write the tuned weights of a run with a model card into a new folder, and return it.

    layout  "diffusers": the file that `load_lora_weights` takes, as the run saved it; "kohya", "comfy": see
            pcpo.export.layouts
    output  None: RUN/export/LAYOUT, or RUN/export/merged
    merged  a whole pipeline folder with the LoRA added into the weights; so is the export of a full fine-tuning
    placement  where a whole pipeline is put together, and the precision in which it is written

    The folder is written beside its place and renamed. Raises RunFolderError when `run` is none or has no tuned weights
    yet, or `output` exists; ConfigError for a pipeline in another layout than diffusers'; ModelError for a family or
    module without a name in the layout.
    """
    run = Path(run)
    config = run_config(run)
    if config is None:
        raise RunFolderError("is not a run folder", where=str(run), fix="give the folder of `pcpo train`")
    whole = merged or config.model.tune == "full"
    if whole and layout != "diffusers":
        raise ConfigError(
            f"a whole model is exported in diffusers' layout only; {layout} is for a LoRA",
            where=f"--format {layout}",
            fix="use --format diffusers" if config.model.tune == "full" else "drop --merged",
        )
    header = read_header(config.model.path)
    backbone_name = adapter_class(header).backbone_name
    output = Path(output) if output is not None else run / "export" / ("merged" if whole else layout)
    with atomic_folder(output) as folder:
        if whole:
            _write_pipeline(run, config, folder, placement)
            load = 'pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")'
        else:
            weights, metadata = read_lora(run / "lora" / LORA_FILE)
            if layout == "diffusers":
                file = folder / LORA_FILE
                file.write_bytes((run / "lora" / LORA_FILE).read_bytes())
            else:
                check_family(header.pipeline, layout)
                file = folder / f"{config.name}.safetensors"
                backbone = empty_backbone(header, backbone_name)
                _write_layout(file, layout, header.pipeline, weights, metadata, backbone, backbone_name)
            load = 'pipe.load_lora_weights("path/to/this/folder")' if layout == "diffusers" else file.name
        write_card(folder, run, config, header, layout, whole, load)
    return output


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of the LoRA file that a run leaves, by their whole names, and its adapter metadata (r, lora_alpha, ...).

    Raises RunFolderError when it is missing or cannot be read.
    """
    if not path.is_file():
        raise RunFolderError(
            "holds no tuned weights yet", where=str(path.parent.parent), fix="finish the run with --resume"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["lora_adapter_metadata"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"cannot be read ({one_line(error)})", where=str(path), fix="finish the run again with --resume"
        ) from error


def empty_backbone(header: ModelHeader, name: str) -> Any:
    """The base model's network without memory for its weights: names, shapes and configuration."""
    import diffusers
    import torch

    cls = getattr(diffusers, header.components[name][1])
    settings = cls.load_config(resolve(header.path), subfolder=name)
    with torch.device("meta"):
        return cls.from_config(settings)


def _write_layout(
    file: Path,
    layout: str,
    pipeline: str,
    weights: dict[str, Tensor],
    metadata: dict[str, Any],
    backbone: Any,
    backbone_name: str,
) -> None:
    prefix = f"{backbone_name}."
    rank, alpha = metadata[f"{prefix}r"], metadata[f"{prefix}lora_alpha"]
    plain = {name.removeprefix(prefix): value for name, value in weights.items()}
    tensors = to_layout(layout, pipeline, plain, alpha / rank, backbone)
    second = pipeline == "StableDiffusionPipeline" and backbone.config.cross_attention_dim == 1024
    facts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_base_model_version": "sd_v2" if second else VERSIONS[pipeline],
        "ss_v2": str(second),
        "ss_output_name": file.stem,
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, metadata=facts)


def _write_pipeline(run: Path, config: Config, folder: Path, placement: Placement) -> None:
    adapter = load_run(run, config, placement=placement)
    if config.model.tune == "lora":
        adapter.unwrapped.fuse_lora()
        adapter.unwrapped.unload_lora()
    adapter.pipe.save_pretrained(folder, safe_serialization=True)
