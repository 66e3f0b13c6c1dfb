"""Measure the shipped folders and draw sample grids.

Run: ``python -m recipes.emoji.evaluate [sd|sd3|clip]``.

Writes ``metrics.json`` and ``samples.png`` beside the weights.  Everything goes through the exported
folders, loaded as any user loads them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from recipes.emoji.common import to_tensor
from recipes.emoji.data import STYLE_WORDS, EmojiData, load, read_list
from recipes.emoji.export import ASSETS
from recipes.emoji.tokenizer import encode
from recipes.emoji.train_clip import evaluate as evaluate_scorer
from recipes.emoji.train_clip import features, retrieval

STEPS = 20
SEED = 7


class Scorer:
    """``emoji-clip`` with a fixed list of candidate captions."""

    def __init__(self, folder: Path, candidates: list[str]) -> None:
        self.model = CLIPModel.from_pretrained(folder).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.position = {name: i for i, name in enumerate(candidates)}
        with torch.no_grad():
            self.text = features(self.model, ids=encode(self.tokenizer, candidates))

    @torch.no_grad()
    def features(self, images: NDArray[np.uint8]) -> Tensor:
        """Unit features [N, 128] of uint8 pictures [N, 64, 64, 3]."""
        return torch.cat([features(self.model, pixels=x) for x in to_tensor(images).split(256)])

    def retrieval(self, images: NDArray[np.uint8], names: list[str]) -> dict[str, float]:
        """Share of pictures whose own caption is the first, or among the first five, of all candidates."""
        truth = torch.tensor([self.position[name] for name in names])
        return retrieval(self.features(images), self.text, truth)


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to unit-length features [N, D] and [M, D]."""
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def generate(pipe: Any, prompts: list[str], guidance: float, seed: int = SEED, steps: int = STEPS) -> NDArray[np.uint8]:
    """One picture [N, 64, 64, 3] per prompt; the noise of picture i depends on (seed, i) only."""
    extra = {"max_sequence_length": 1} if hasattr(pipe, "transformer") else {}
    pictures = []
    for start in range(0, len(prompts), 50):
        part = prompts[start : start + 50]
        generators = [torch.Generator().manual_seed(seed * 100_003 + start + i) for i in range(len(part))]
        out = pipe(
            part,
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
            **extra,
        )
        pictures.append((out.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def draw_grid(path: Path, images: NDArray[np.uint8], names: list[str], columns: int = 10) -> None:
    """Write pictures with their prompts below, ``columns`` to a row."""
    cell, label = 88, 14
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        x, y = i % columns * cell, i // columns * (cell + label)
        sheet.paste(Image.fromarray(image).resize((80, 80), Image.Resampling.BICUBIC), (x + 4, y + 2))
        draw.text((x + 4, y + 84), name[:15], fill="black")
    # 128 colours keep the file small and are enough to judge shapes
    sheet.quantize(128).save(path, optimize=True)


def pictures_of(data: EmojiData, concepts: NDArray[np.int64]) -> tuple[NDArray[np.uint8], list[str]]:
    """Real pictures of both training styles with their names."""
    pairs = [(c, s) for s in (0, 1) for c in concepts.tolist() if data.present[c, s]]
    return np.stack([data.images[c, s] for c, s in pairs]), [data.names[c] for c, _ in pairs]


def evaluate_pipeline(folder: Path, data: EmojiData, scorer: Scorer, scales: list[float]) -> dict[str, Any]:
    """Retrieval at several guidance scales; distances, unseen prompts and the grid at the best of them."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    common = read_list(folder.parent / "prompts/common50.txt")
    names = [data.names[i] for i in data.train]
    index = {name: i for i, name in enumerate(data.names)}
    guidance = {}
    for scale in scales:
        pictures = np.concatenate([generate(pipe, common, scale, SEED + k) for k in range(2)])
        guidance[str(scale)] = scorer.retrieval(pictures, common * 2)
        print(folder.name, scale, guidance[str(scale)], flush=True)
    best = max(scales, key=lambda s: guidance[str(s)]["top5"] + 0.1 * guidance[str(s)]["top1"])
    styled = [f"{name}, {word}" for word in STYLE_WORDS.values() for name in names]
    everything = generate(pipe, styled, best)
    heldout = [data.names[i] for i in data.heldout]
    unseen = generate(pipe, heldout, best)
    all_scorer = Scorer(folder.parent / "emoji-clip", names + heldout)
    real_heldout = scorer.features(pictures_of(data, data.heldout)[0])
    real_train = scorer.features(pictures_of(data, data.train)[0])
    real_common, real_names = pictures_of(data, np.array([index[name] for name in common]))
    draw_grid(folder / "samples.png", generate(pipe, common, best), common)
    return {
        "sampling": {"steps": STEPS, "guidance_scale": best},
        "common50_by_guidance": guidance,
        "common50": guidance[str(best)],
        "common50_real_pictures": scorer.retrieval(real_common, real_names),
        "all_concepts_both_styles": scorer.retrieval(everything, names * 2),
        "heldout_prompts_among_all": all_scorer.retrieval(unseen, heldout),
        "candidates": len(names),
        "frechet_generated_to_train": round(frechet(scorer.features(everything), real_train), 4),
        "frechet_generated_to_heldout": round(frechet(scorer.features(everything), real_heldout), 4),
        "frechet_train_to_heldout": round(frechet(real_train, real_heldout), 4),
    }


def main() -> None:
    """Evaluate what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["clip", "sd", "sd3"])
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/pcpo/emoji")
    parser.add_argument("--target", type=Path, default=ASSETS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, 3.0, 4.0, 5.0])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load(arguments.work)
    scorer = Scorer(arguments.target / "emoji-clip", [data.names[i] for i in data.train])
    for name in arguments.models:
        folder = arguments.target / f"emoji-{name}"
        if name == "clip":
            metrics: dict[str, Any] = evaluate_scorer(scorer.model, data, scorer.tokenizer)
            comparison = arguments.work / "comparison.json"
            if comparison.exists():
                metrics["comparison"] = json.loads(comparison.read_text(encoding="utf-8"))
        else:
            metrics = evaluate_pipeline(folder, data, scorer, arguments.guidance)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
