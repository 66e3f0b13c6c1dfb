"""`pcpo compare`: what several models make of the same prompts and noises, as a picture and a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pcpo.data.files import atomic_folder, write_json_atomic, write_text_atomic
from pcpo.data.grids import captioned_grid
from pcpo.data.prompts import Prompt
from pcpo.errors import ConfigError, ModelError
from pcpo.evaluation.compare import check_source, no_progress
from pcpo.evaluation.sampling import DEFAULT, Placement, load_for_sampling, sample_set
from pcpo.observe.comparison import Row, page
from pcpo.rewards.base import evaluate
from pcpo.types import Reward

GRID_SIDE = 192


@dataclass
class SideBySide:
    """Pictures of several models, each [P * count, 3, H, W] uint8, prompt-major, and their rewards [P * count].

    values: model -> reward -> values, nan where the reward abstained.
    """

    prompts: Sequence[Prompt]
    count: int
    settings: Mapping[str, Any]
    pictures: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def compare(
    sources: Sequence[str],
    prompts: Sequence[Prompt],
    *,
    count: int = 1,
    steps: int = 20,
    guidance_scale: float = 5.0,
    seed: int = 0,
    rewards: Mapping[str, Reward] | None = None,
    advance: Callable[[int], None] = no_progress,
    placement: Placement = DEFAULT,
) -> SideBySide:
    """Sample each source (see `load_for_sampling`) and score its pictures; one model is in memory at a time.

    A model that one of the runs was tuned from is loaded as that run loads it: its size, precision and text length.
    Noises depend on (seed, prompt, number) and the latent shape, so models of one shape start from the same noise.
    Raises what loading raises, ConfigError for fewer than two sources or one given twice, ModelError when their
    pictures differ in size.
    """
    if len(sources) < 2 or len(set(sources)) < len(sources):
        raise ConfigError("need two or more different models", where="pcpo compare", fix="for instance emoji-sd RUN")
    configs = [config for source in sources if (config := check_source(source)) is not None]
    placement = replace(placement, runs=tuple(configs))
    settings = {"count": count, "steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    out = SideBySide(prompts, count, settings)
    repeated = [prompt for prompt in prompts for _ in range(count)]
    for name, source in zip(labels(sources), sources, strict=True):
        pictures = sample_set(
            load_for_sampling(source, placement),
            prompts,
            count=count,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            advance=advance,
        )
        shapes = {tuple(p.shape[1:]) for p in (*out.pictures.values(), pictures)}
        if len(shapes) > 1:
            sizes = " and ".join(f"{width} x {height}" for _, height, width in sorted(shapes))
            raise ModelError(f"make pictures of {sizes}", where="models", fix="choose one --resolution for all")
        out.pictures[name] = pictures
        texts, metadata = [p.text for p in repeated], [p.metadata for p in repeated]
        results = {key: evaluate(r, pictures, texts, metadata, name=key) for key, r in (rewards or {}).items()}
        out.values[name] = {k: r.values.where(r.valid, r.values.new_tensor(float("nan"))) for k, r in results.items()}
    return out


def labels(sources: Sequence[str]) -> list[str]:
    """The last parts of paths, whole sources where those are not distinct."""
    short = [source.rstrip("/").rpartition("/")[2] or source for source in sources]
    return short if len(set(short)) == len(short) else list(sources)


def write_comparison(result: SideBySide, output: Path) -> Path:
    """Write compare.png, compare.html and compare.json into a new folder, whole or not at all; returns the page's path.

    Raises RunFolderError when the folder exists or cannot be written.
    """
    names = list(result.pictures)
    captions = [p.text if n == 0 else "" for p in result.prompts for n in range(result.count)]
    with atomic_folder(output) as folder:
        grid = captioned_grid(list(result.pictures.values()), names, captions, side=GRID_SIDE)
        grid.save(folder / "compare.png", format="PNG")
        write_text_atomic(folder / "compare.html", page(names, _rows(result), result.settings))
        write_json_atomic(folder / "compare.json", to_json(result))
    return output / "compare.html"


def to_json(result: SideBySide) -> dict[str, Any]:
    """Settings, prompts, and every value by model and reward; null where the reward abstained."""
    values = {
        name: {key: [None if v != v else v for v in column.tolist()] for key, column in columns.items()}
        for name, columns in result.values.items()
    }
    return {**result.settings, "prompts": [p.text for p in result.prompts], "values": values}


def _rows(result: SideBySide) -> list[Row]:
    """One row per prompt: for each model its pictures and their values."""
    rows = []
    for place, prompt in enumerate(result.prompts):
        part = slice(place * result.count, (place + 1) * result.count)
        rows.append(
            Row(
                prompt.text,
                [pictures[part] for pictures in result.pictures.values()],
                [{key: column[part].tolist() for key, column in v.items()} for v in result.values.values()],
            )
        )
    return rows
