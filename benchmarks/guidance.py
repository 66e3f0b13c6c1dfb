"""Implicit Reward Guidance: one reward against another over a grid of weights of two tuned adapters.

    python benchmarks/guidance.py                 # trains what is missing (5 to 10 minutes each), samples, draws
    python benchmarks/guidance.py --draw-only     # only draws from what was measured

Two LoRAs of emoji-sd, one tuned on each reward, are loaded on one base. Every point of the figure is the mean reward of
the same prompts and noises at one pair of weights; the prompts were trained on, the noises were not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
REWARDS = ("colorfulness", "jpeg_compressibility")
WEIGHTS = (0.0, 0.5, 1.0, 1.5)
SHOWN = (0, 9)  # prompts of the figure: the first and the tenth of the set
SETTINGS = ["train.iterations=20", "evaluation.credit_probe=0", "evaluation.every=10", "run.threads=1"]
STEPS, SCALE, SEED, PROMPTS, COUNT = 10, 4.0, 1, 24, 2


def train(reward: str, folder: Path) -> Path:
    """The run of one reward; a finished run returns at once."""
    output = folder / reward
    if not (output / "lora").is_dir():
        from pcpo.trainer.configfile import load_config
        from pcpo.trainer.loop import PCPOTrainer

        settings = [*SETTINGS, f"reward={reward}", f"run.output={output}", f"name=irg_{reward}"]
        PCPOTrainer(config=load_config("demo", settings), resume=output.exists()).train()
    return output


def measure(runs: list[Path]) -> tuple[dict[str, Any], torch.Tensor]:
    """Both rewards at every pair of weights, and the pictures of the shown prompts [pairs, shown, 3, H, W]."""
    from pcpo.data.prompts import load_prompts
    from pcpo.evaluation.guidance import load_guidance
    from pcpo.evaluation.sampling import sample_set
    from pcpo.rewards.base import evaluate
    from pcpo.rewards.registry import load_reward

    torch.set_num_threads(1)
    prompts = load_prompts("common50")[:PROMPTS]
    texts = [prompt.text for prompt in prompts for _ in range(COUNT)]
    rewards = {name: load_reward(name) for name in REWARDS}
    guidance = load_guidance("emoji-sd", [(str(run), 0.0) for run in runs])
    points, shown, began = [], [], time.perf_counter()
    for pair in itertools.product(WEIGHTS, WEIGHTS):
        guidance.weights = {"net_0": pair[0], "net_1": pair[1]}
        pictures = sample_set(
            guidance.adapter,
            prompts,
            count=COUNT,
            steps=STEPS,
            guidance_scale=SCALE,
            seed=SEED,
            make_policy=guidance.make_policy,
        )
        values = {name: evaluate(reward, pictures, texts, [{}] * len(texts)).values for name, reward in rewards.items()}
        points.append(
            {
                "weights": pair,
                **{name: float(v.mean()) for name, v in values.items()},
                "standard_error": {name: float(v.std() / len(v) ** 0.5) for name, v in values.items()},
            }
        )
        shown.append(pictures[[place * COUNT for place in SHOWN]])
        print(points[-1], flush=True)
    return {
        "model": "emoji-sd",
        "rewards": REWARDS,
        "training": ["demo", *SETTINGS],
        "sampling": {"prompts": PROMPTS, "per_prompt": COUNT, "steps": STEPS, "guidance_scale": SCALE, "seed": SEED},
        "shown": [prompts[place].text for place in SHOWN],
        "seconds": round(time.perf_counter() - began, 1),
        "points": points,
    }, torch.stack(shown)


def draw(results: dict[str, Any], pictures: torch.Tensor, path: Path) -> None:
    """The two rewards against each other, lines of equal weight; and a prompt's pictures over the grid."""
    first, second = results["rewards"]
    at = {tuple(point["weights"]): (point[first], point[second]) for point in results["points"]}
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), width_ratios=(1.25, 1, 1), layout="constrained")
    colours = plt.get_cmap("viridis")([0.0, 0.3, 0.6, 0.85])
    for weight, colour in zip(WEIGHTS, colours, strict=True):
        line = [at[other, weight] for other in WEIGHTS]
        axes[0].plot(*zip(*line, strict=True), "o-", color=colour, label=rf"$\lambda$ of {second} = {weight:g}")
        axes[0].annotate(f"{WEIGHTS[-1]:g}", line[-1], xytext=(6, 0), textcoords="offset points", fontsize=8)
        axes[0].plot(*zip(*[at[weight, other] for other in WEIGHTS], strict=True), ":", color="0.6", zorder=0)
    axes[0].plot(*at[0.0, 0.0], "s", color="black", markersize=9, label="base model")
    axes[0].plot(*at[1.0, 0.0], "^", color="black", markersize=9, label=f"tuned on {first}")
    axes[0].plot(*at[0.0, 1.0], "v", color="black", markersize=9, label=f"tuned on {second}")
    axes[0].set(xlabel=f"{first} (mean)", ylabel=f"{second}, -kB (mean)", title="Two adapters, combined when sampling")
    axes[0].legend(fontsize=8)
    axes[0].grid(alpha=0.3)
    size, pad = pictures.shape[-1], 3
    for place, axis in enumerate(axes[1:]):
        sheet = torch.full((3, *[len(WEIGHTS) * (size + pad) - pad] * 2), 255, dtype=torch.uint8)
        for n, (a, b) in enumerate(itertools.product(range(len(WEIGHTS)), repeat=2)):
            row, column = (len(WEIGHTS) - 1 - b) * (size + pad), a * (size + pad)
            sheet[:, row : row + size, column : column + size] = pictures[n, place]
        axis.imshow(sheet.permute(1, 2, 0))
        centres = [k * (size + pad) + size / 2 for k in range(len(WEIGHTS))]
        axis.set_xticks(centres, [f"{w:g}" for w in WEIGHTS])
        axis.set_yticks(centres, [f"{w:g}" for w in reversed(WEIGHTS)])
        axis.set(xlabel=rf"$\lambda$ of {first}", ylabel=rf"$\lambda$ of {second}", title=results["shown"][place])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Train, measure, draw."""
    from safetensors.torch import load_file, save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "guidance", help="where the two runs are")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--draw-only", action="store_true")
    arguments = parser.parse_args()
    file, kept = arguments.output / "guidance.json", arguments.runs / "guidance.safetensors"
    if not arguments.draw_only:
        results, pictures = measure([train(reward, arguments.runs) for reward in REWARDS])
        file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        save_file({"pictures": pictures}, kept)
    draw(json.loads(file.read_text("utf-8")), load_file(kept)["pictures"], arguments.output / "guidance.png")


if __name__ == "__main__":
    main()
