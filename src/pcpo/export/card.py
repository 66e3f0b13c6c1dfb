"""The model card of an export: README.md with the front matter that the hub reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCardData

from pcpo import __version__
from pcpo.data.files import write_text_atomic
from pcpo.data.grids import captioned_grid
from pcpo.data.images import load_image
from pcpo.data.untrusted import inside
from pcpo.errors import ImageError, PCPOError
from pcpo.models.folders import EMBEDDED, ModelHeader, looks_like_hub_id, resolve
from pcpo.observe.events import read_events
from pcpo.observe.markdown import escape
from pcpo.observe.numbers import number
from pcpo.observe.pictures import spaced
from pcpo.observe.records import Evaluation
from pcpo.trainer.config import Config

SAMPLES = "samples.png"
MAX_ROWS = 6
SETTINGS = ("model", "sampler", "credit", "objective", "advantage", "kl", "batch", "train", "optim")


def write_card(
    folder: Path, run: Path, config: Config, header: ModelHeader, layout: str, whole: bool, load: str
) -> None:
    """Write README.md, and samples.png where the run has evaluation pictures, into an export folder."""
    evaluations = _evaluations(run)
    licence, named = base_licence(config.model.path)
    front = ModelCardData(
        base_model=config.model.path if looks_like_hub_id(config.model.path) else None,
        library_name="diffusers",
        license=licence if named else "other",
        license_name=None if named else "see-base-model",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "pcpo", "reinforcement-learning", *([] if whole else ["lora"])],
    )
    shown = _write_samples(folder / SAMPLES, run, evaluations)
    parts = [
        f"# {escape(config.name)}",
        _about(config, header, whole),
        _rewards(config, evaluations),
        shown,
        "## Use\n\n" + _usage(config, layout, whole, load),
        f"## Base model and licence\n\nTuned from {escape(base_name(config.model.path))}, a `{header.pipeline}`. "
        + (f"Licence of the base model: {escape(licence)}." if named else "Licence: see base model."),
        "## Settings\n\n" + _settings(config),
        f"Made with [pcpo](https://arxiv.org/abs/2509.25774) {__version__}.",
    ]
    write_text_atomic(folder / "README.md", f"---\n{front.to_yaml()}\n---\n" + "\n\n".join(filter(None, parts)) + "\n")


def base_name(path: str) -> str:
    """Hub id or embedded name; of a local folder the last part, since a card says nothing of its author's disk."""
    return path if path in EMBEDDED or looks_like_hub_id(path) else Path(path).name


def base_licence(path: str) -> tuple[str, bool]:
    """The licence that the base model's own card names, and whether it names one. Local folders only."""
    from huggingface_hub.repocard import metadata_load

    card = Path(resolve(path)) / "README.md"
    try:
        data = metadata_load(card) if card.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):  # a card that the hub could not read either
        data = None
    licence = (data or {}).get("license")
    return (licence, True) if isinstance(licence, str) and licence else ("", False)


def _evaluations(run: Path) -> list[Evaluation]:
    try:
        return [event for event in read_events(run / "events.jsonl").evaluations if event.reward_mean is not None]
    except PCPOError:  # the weights are what is exported; a damaged log costs the card its figures only
        return []


def _about(config: Config, header: ModelHeader, whole: bool) -> str:
    what = "A fine-tuning" if config.model.tune == "full" else "A merged LoRA" if whole else "A LoRA"
    rewards = " + ".join(
        ("" if part.weight == 1 else f"{part.weight:g} x ") + escape(part.name.rpartition(":")[2])
        for part in config.reward
    )
    return (
        f"{what} of {escape(base_name(config.model.path))} ({header.pipeline}), tuned on the reward {rewards} by "
        f"policy gradient: {config.sampler.name} sampler, {config.credit.schedule} credit, {config.objective.name} "
        f"objective, {config.train.iterations} iterations."
    )


def _rewards(config: Config, evaluations: list[Evaluation]) -> str:
    """Reward of the same prompts and noises at the first and the last evaluation, and of each part."""
    if len(evaluations) < 2:
        return ""
    first, last = evaluations[0], evaluations[-1]
    rows = [("total", first.reward_mean, last.reward_mean)]
    if len(last.rewards) > 1 or len(config.reward) > 1:
        rows += [(escape(name), first.rewards.get(name), value) for name, value in last.rewards.items()]
    lines = [f"| {name} | {number(before)} | {number(after)} |" for name, before, after in rows]
    head = f"| reward | before | after {last.iteration} iterations |\n| --- | --- | --- |\n"
    count = f"{len(last.values)} picture{'s' if len(last.values) > 1 else ''}"
    return head + "\n".join(lines) + f"\n\nMeans over {count}, the same prompts and noises."


def _write_samples(path: Path, run: Path, evaluations: list[Evaluation]) -> str:
    """Write the grid of pictures before and after; the Markdown that shows it, or nothing."""
    if len(evaluations) < 2:
        return ""
    first, last = evaluations[0], evaluations[-1]
    available = min(len(first.pictures), len(last.pictures), len(last.prompts))
    chosen = spaced(available, MAX_ROWS) if available else []
    try:
        columns = [torch.stack([load_image(inside(run, event.pictures[i])) for i in chosen]) for event in (first, last)]
    except (ImageError, RuntimeError, ValueError):  # deleted, of another size, or outside of the run
        return ""
    captions = [last.prompts[i] for i in chosen]
    captioned_grid(columns, ["before", "after"], captions, side=128).save(path, format="PNG")
    return f"![before and after]({SAMPLES})\n\nThe same prompts and noises before and after: " + ", ".join(
        dict.fromkeys(escape(caption) for caption in captions)
    )


def _usage(config: Config, layout: str, whole: bool, load: str) -> str:
    base = config.model.path if looks_like_hub_id(config.model.path) else base_name(config.model.path)
    if layout == "kohya":
        return f"`{load}` is in the layout of sd-scripts: put it where your tool keeps its LoRAs."
    if layout == "comfy":
        return f"Put `{load}` into `ComfyUI/models/loras` and choose it in a Load LoRA node."
    first = [] if whole else [f"pipe = DiffusionPipeline.from_pretrained({_quoted(base)})"]
    return "\n".join(["```python", "from diffusers import DiffusionPipeline", *first, load, "```"])


def _quoted(text: str) -> str:
    return '"' + re.sub(r'["\\`\x00-\x1f]', "_", text) + '"'


def _settings(config: Config) -> str:
    """The settings that decide what was learnt, as a table; paths and execution are left out."""
    data = config.model_dump(mode="json", include=set(SETTINGS))
    data["model"].pop("path")
    lines = [f"| {name} | {escape(_value(value))} |" for name, value in _flat(data) if value is not None]
    return "| setting | value |\n| --- | --- |\n" + "\n".join(lines)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else key)]


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
