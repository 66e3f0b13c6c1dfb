"""Write the model cards from the measured figures.

Run: ``python -m recipes.emoji.card``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from recipes.emoji.export import ASSETS

DATA = """\
## Data and credits

Trained from scratch on two emoji drawing styles: [Noto Emoji](https://github.com/googlefonts/noto-emoji)
(Google, Apache-2.0) and [Fluent Emoji 3D](https://github.com/microsoft/fluentui-emoji) (Microsoft, MIT),
composited on white at 64 x 64, without flags and skin tones. Captions: names of unicode-emoji-json (MIT)
and keywords of emojilib (MIT). Forty concepts (`recipes/emoji/concepts_heldout.txt`) were never trained on
by any part; only the tokenizer's merges saw their names.
"""
LIMITS = """\
## Limits

Made for tests, demonstrations and method studies. It knows {count} emoji concepts at 64 x 64 pixels and
largely reproduces what it has seen, in either style; combinations of words that no emoji shows rarely work.
English only. Not for production use.
"""
PIPELINE = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
language: en
tags: [{tags}]
---
# {name}

{about}

![samples](samples.png)

The 50 prompts of `prompts/common50.txt`, one fixed noise each, not selected; {steps} steps, guidance {scale}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}")
image = pipe("red apple, 3d", num_inference_steps={steps}, guidance_scale={scale}{extra}).images[0]
```

Prompts: an emoji name (`recipes/emoji/concepts_train.txt`), alone or with `, cartoon` (Noto) or `, 3d`
(Fluent).

{data}
## Training

{training}

## Measured quality

Right caption found by `emoji-clip` among the {candidates} captions of the training concepts:

| pictures | top-1 | top-5 |
| --- | --- | --- |
| generated, 50 common prompts x 2 noises | {common} |
| real pictures of the same 50 concepts, both styles | {real} |
| generated, all {candidates} concepts in both styles | {everything} |
| generated, 40 unseen concepts, among {with_heldout} captions | {unseen} |

By guidance scale (common prompts, top-1 / top-5): {by_scale}.

Frechet distance in `emoji-clip` features (128 unit-length dimensions; the held-out set is small, so compare
the numbers with each other only): generated to training pictures {fd_train}, generated to held-out pictures
{fd_heldout}, training to held-out pictures {fd_real}.

{limits}"""
ABOUT = {
    "sd": """\
A very small text-to-image model in Stable Diffusion's layout: U-Net with eps-prediction, DDIM schedule, one
CLIP text encoder, an 8x autoencoder with 16 channels.""",
    "sd3": """\
A very small text-to-image model in Stable Diffusion 3's layout: MM-DiT with flow matching (shift 3), two CLIP
text encoders, an 8x autoencoder with 16 channels. `text_encoder_3` is a stub whose output is zero, exactly
what the pipeline uses when it has no T5: pass `text_encoder_3=None, tokenizer_3=None` to drop it.
`max_sequence_length` is the number of these zeros; 1 is the fastest.""",
}
CLIP = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
language: en
---
# emoji-clip

A very small `CLIPModel` (ViT, 8 x 8 patches on 64 x 64 pictures; {parameters}) that scores how well an
emoji picture fits a text. It serves as the alignment reward and as the feature space for Frechet distance.

```python
from transformers import CLIPModel, CLIPProcessor

model, processor = CLIPModel.from_pretrained("emoji-clip"), CLIPProcessor.from_pretrained("emoji-clip")
```

{data}Twemoji (CC BY 4.0) was used for the test on an unseen style only.

## Training

{training}

Contrastive loss on strongly distorted pictures (scale, shift, rotation, mirror, blur, tint, noise, erased
boxes, reconstructions by the pipelines' autoencoder); both towers also regress on MiniLM sentence
embeddings of the name and keywords (all-MiniLM-L6-v2, Apache-2.0).

## Measured quality

Share of pictures whose own name is first, or among the first five:

| test | top-1 | top-5 |
| --- | --- | --- |
{rows}
{options}{comparison}
## Limits

It knows emoji, not photographs: scores of other pictures mean nothing. It was trained on the pictures that
the generators were trained on, so it measures agreement with those.
"""
COMPARISON = """
## Options compared

Short trainings with one seed and the same pictures, distortions and tests (`make -C recipes/emoji compare`);
top-1 / top-5. The size counts everything that would ship; milliseconds are of one CPU thread on batches of 16
(the machine was busy: the two CLIPs are the same network). The frozen image side sees three distorted copies of
each picture at 128 x 128, made in advance; its seconds include making them.

{table}

The budget is about two minutes each, far less than the shipped scorer had, so compare the rows with each other
first; on 40 unseen concepts one standard error is about 0.08. **Teacher:** MiniLM targets gain a little on the
generator's concepts and nothing elsewhere; with one seed and 200 steps that is within the noise, so this does
not show that they help. **Image side:** at equal steps and with the same text side, frozen EfficientNet-Lite0
features beat the ViT by far on four of the five tests and are level on the last; on the unseen style 200 steps
reach what the shipped scorer needs 1,400 for. **Text side:** with the frozen MiniLM tower (and more, cheaper
steps) the right name of an unseen concept comes first in 0.62 of the cases; the shipped scorer reaches 0.25. So
the frozen pair, whose towers were trained on far more data, generalises much better than `emoji-clip`.
**Choice:** it does not fit the limit of 8 MB: MiniLM alone is 45 MB in fp16. EfficientNet-Lite0 (6.7 MB without
its classifier), head (1.4 MB) and the small text tower (1.7 MB) miss the limit by less, at six to eight times
the CPU time per picture. What fits is the CLIP from scratch, and that ships, with MiniLM targets; its weights
were trained before this comparison and not changed by it. The obvious next step is to distil the frozen pair
into a small image tower and a small text tower.
"""


def last_line(log: Path) -> dict[str, Any]:
    """The last entry of a training log."""
    line: dict[str, Any] = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return line


def spent(work: Path, name: str) -> str:
    """Steps and minutes of one training, in words."""
    line = last_line(work / f"{name}.jsonl")
    return f"{line['step']:,} steps in {line['seconds'] / 60:.0f} minutes (pauses included) of"


def pair(figures: dict[str, float]) -> str:
    """Two table cells."""
    return f"{figures['top1']:.2f} | {figures['top5']:.2f}"


def pipeline_card(name: str, folder: Path, work: Path) -> str:
    """Card of ``sd`` or ``sd3``."""
    m = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    batch, loss = {
        "sd": (64, "eps-prediction with Min-SNR weights (gamma 5)"),
        "sd3": (48, "flow matching with logit-normal times"),
    }[name]
    training = (
        f"Backbone and text encoders jointly, {loss}, AdamW 1e-3, cosine decay, moving average:\n"
        f"{spent(work, name)} batch {batch}, one CPU thread.\nAutoencoder, once for both pipelines: "
        f"{spent(work, 'vae')} batch 16, one to two threads.\nThe planned number of steps was cut on the "
        "way, so the learning rate fell a little faster than one cosine.\nRecipe: `recipes/emoji`."
    )
    return PIPELINE.format(
        tags="stable-diffusion, tiny" if name == "sd" else "stable-diffusion-3, flow-matching, tiny",
        name=f"emoji-{name}",
        about=ABOUT[name],
        steps=m["sampling"]["steps"],
        scale=m["sampling"]["guidance_scale"],
        extra=", max_sequence_length=1" if name == "sd3" else "",
        data=DATA,
        training=training,
        candidates=m["candidates"],
        with_heldout=m["candidates"] + 40,
        common=pair(m["common50"]),
        real=pair(m["common50_real_pictures"]),
        everything=pair(m["all_concepts_both_styles"]),
        unseen=pair(m["heldout_prompts_among_all"]),
        by_scale=", ".join(f"{k}: {v['top1']:.2f} / {v['top5']:.2f}" for k, v in m["common50_by_guidance"].items()),
        fd_train=m["frechet_generated_to_train"],
        fd_heldout=m["frechet_generated_to_heldout"],
        fd_real=m["frechet_train_to_heldout"],
        limits=LIMITS.format(count=m["candidates"]),
    )


def comparison_section(comparison: dict[str, Any]) -> str:
    """The table of ``compare_scorers`` and what was concluded from it."""
    tests = list(next(iter(comparison.values()))["tests"])
    head = ["variant", "steps", "seconds", "MB in fp16", "ms a picture", *tests]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for label, v in comparison.items():
        figures = [f"{v['tests'][t]['top1']:.2f} / {v['tests'][t]['top5']:.2f}" for t in tests]
        cells = [label, v["steps"], v["seconds"], v["size_mb"], v["ms"], *figures]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return COMPARISON.format(table="\n".join(lines))


def clip_card(folder: Path, work: Path) -> str:
    """Card of the scorer; ``metrics-*.json`` files in the work folder are earlier stages."""
    m = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    comparison = m.pop("comparison", None)
    options = ""
    variants = sorted(work.glob("metrics-*.json"))
    if variants:
        tests = list(m)
        options = "\nEarlier in the same training (top-1 / top-5):\n\n| after | " + " | ".join(tests) + " |\n"
        options += "| --- " * (len(tests) + 1) + "|\n"
        for path in variants:
            v = json.loads(path.read_text(encoding="utf-8"))
            cells = " | ".join(f"{v[t]['top1']:.2f} / {v[t]['top5']:.2f}" for t in tests)
            options += f"| {path.stem.removeprefix('metrics-').lstrip('0')} | {cells} |\n"
    return CLIP.format(
        parameters="1.7 M parameters, 128 dimensions",
        data=DATA,
        training=f"{spent(work, 'clip')} batch 128, one CPU thread. Recipe: `recipes/emoji`.\n"
        "The planned number of steps was cut on the way; the first 500 steps saw no reconstructions.",
        rows="\n".join(f"| {test} | {pair(v)} |" for test, v in m.items()),
        options=options,
        comparison=comparison_section(comparison) if comparison else "",
    )


def main() -> None:
    """Write the cards of the folders that have figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/pcpo/emoji")
    parser.add_argument("--target", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    for name in ("sd", "sd3", "clip"):
        folder = arguments.target / f"emoji-{name}"
        if (folder / "metrics.json").exists():
            card = clip_card(folder, arguments.work) if name == "clip" else pipeline_card(name, folder, arguments.work)
            (folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
