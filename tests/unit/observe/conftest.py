"""Fixtures: run folders that look real, with plausible numbers and pictures that get more colourful."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pcpo.observe.events import EventWriter

STEPS = list(range(10))
PROMPTS = [
    "a red apple",
    "a blue fish",
    "a smiling face",
    "a rocket",
    "a house with a garden",
    "a green frog",
]

CONFIG = {
    "name": "pcpo-emoji-sd3",
    "model": {"path": "emoji-sd3", "tune": "lora", "lora": {"rank": 16, "alpha": None, "targets": None}},
    "prompts": PROMPTS,
    "reward": [{"name": "colorfulness", "weight": 1.0}, {"name": "alignment", "weight": 0.5}],
    "sampler": {"name": "flow_sde", "steps": 10, "eta": 0.7, "guidance_scale": 4.5},
    "credit": {"schedule": "proportional", "apply": "matching"},
    "objective": {"name": "matching", "clip_range": 1e-4},
    "optim": {"learning_rate": 3e-4, "betas": [0.9, 0.999]},
}
ENVIRONMENT = {"python": "3.11.7", "platform": "Linux x86_64", "torch": "2.13.0", "device": "cpu"}


def draw_picture(index: int, progress: float, side: int = 64) -> Image.Image:
    """A face-like disc on a light ground, grey at progress 0 and vivid at 1."""
    noise = np.random.default_rng(index).normal(0, 10 * (1 - progress), (side, side, 3))
    grey, vivid = (
        150,
        [(214, 40, 40), (32, 96, 210), (240, 180, 20), (120, 60, 190), (30, 160, 90)][index % 5],
    )
    colour = tuple(round(grey + progress * (part - grey)) for part in vivid)
    picture = Image.new("RGB", (side, side), (244, 244, 246))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((side * 0.1, side * 0.1, side * 0.9, side * 0.9), fill=colour)
    for eye in (0.32, 0.58):
        pen.ellipse((side * eye, side * 0.33, side * (eye + 0.1), side * 0.47), fill=(30, 30, 40))
    pen.arc((side * 0.3, side * 0.4, side * 0.7, side * 0.74), 20, 160, fill=(30, 30, 40), width=side // 20)
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def native_weights(steps: Sequence[int]) -> tuple[list[float], list[float]]:
    """Weights w and lengths dt of Flow-SDE's steps on a grid with shift 3, a = 0.7."""
    grid = [3 * s / (1 + 2 * s) for s in (1 - index / 10 for index in range(11))]
    weights, lengths = [], []
    for step in steps:
        t, dt = grid[step], grid[step] - grid[step + 1]
        g = 0.7 * math.sqrt(t / (1 - (t if t < 1 else grid[1])))
        weights.append(dt * (1 + 0.245) / (g * math.sqrt(dt)))
        lengths.append(dt)
    return weights, lengths


def iteration_fields(number: int, total: int, rng: random.Random, steps: Sequence[int]) -> dict[str, object]:
    """One iteration of a run that learns along a saturating curve."""
    progress = 1 - math.exp(-3 * number / total)
    clipped = [max(0.0, 0.04 + 0.3 * progress * math.exp(-step / 4) + rng.gauss(0, 0.015)) for step in steps]
    return {
        "iteration": number,
        "reward_mean": 31 + 16 * progress + rng.gauss(0, 1.0),
        "reward_std": 6 + rng.gauss(0, 0.5),
        "rewards": {"colorfulness": 30 + 16 * progress, "alignment": 0.31 + 0.02 * progress},
        "invalid": 0,
        "zero_std_groups": rng.choice([0, 0, 0, 1]),
        "clip_fraction": sum(clipped) / len(clipped),
        "clip_fraction_per_step": clipped,
        "steps": list(steps),
        "approx_kl": 2e-5 * (1 + progress) * rng.uniform(0.7, 1.3),
        "ratio_error": rng.choice([0.0, 1e-7, 4e-7, 2e-6]),
        "log_ratio_std_per_step": [1e-4] * len(steps),
        "loss": -1e-5 * rng.uniform(0.5, 1.5),
        "grad_norm": 0.8 * rng.uniform(0.6, 1.6),
        "learning_rate": 3e-4,
        "pictures_per_second": 9.7 + rng.gauss(0, 0.3),
        "seconds": {"rollout": 2.1, "reward": 0.1, "update": 2.9, "total": 5.1},
        "samples": 48 * number,
    }


def save_evaluation(writer: EventWriter, run: Path, at: int, total: int, prompts: Sequence[str], side: int) -> None:
    """Draw an evaluation's pictures and log it."""
    progress = 1 - math.exp(-3 * at / total)
    names = [f"images/{at:06d}/{index:02d}.png" for index in range(len(prompts))]
    (run / "images" / f"{at:06d}").mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        draw_picture(index, progress, side).save(run / name)
    values = [31 + 16 * progress + (index % 7) - 3 for index in range(len(prompts))]
    writer.write(
        "evaluation",
        iteration=at,
        reward_mean=sum(values) / len(values),
        reward_std=2.0,
        rewards={"colorfulness": 30 + 15 * progress, "alignment": 0.31 + 0.02 * progress},
        prompts=list(prompts),
        values=values,
        sheet=f"images/{at:06d}.png",
        pictures=names,
    )


def write_run(
    run: Path,
    iterations: int = 30,
    evaluations: Sequence[int] = (0, 10, 20, 30),
    *,
    pictures: int = 12,
    side: int = 64,
    prompts: Sequence[str] = PROMPTS,
    gradient_share: bool = True,
    fraction: float = 1.0,
    ended: bool = True,
) -> Path:
    """Write a run folder; with fraction below 1, each iteration trains a random part of the steps."""
    rng = random.Random(7)
    native, lengths = native_weights(STEPS)
    zeta = sum(native) / sum(lengths)
    target = [zeta * dt for dt in lengths]
    run.mkdir(parents=True, exist_ok=True)
    with EventWriter(run / "events.jsonl") as writer:
        writer.write(
            "run_start",
            time="2026-01-01T00:00:00Z",
            version="0.1.0",
            run_name="pcpo-emoji-sd3",
            config=CONFIG,
            environment=ENVIRONMENT,
            num_parameters=4_100_000,
            trainable_parameters=196_608,
        )
        writer.write("credit", steps=STEPS, dt=lengths, native=native, target=target, num_steps=10)
        for number in range(iterations + 1):
            if number > 0:
                trained = STEPS if fraction == 1 else sorted(rng.sample(STEPS, round(fraction * len(STEPS))))
                writer.write("iteration", **iteration_fields(number, max(iterations, 1), rng, trained))
            if number in evaluations:
                asked = [prompts[index % len(prompts)] for index in range(pictures)]
                save_evaluation(writer, run, number, max(iterations, 1), asked, side)
                if gradient_share:
                    measured = [weight * rng.uniform(0.85, 1.18) for weight in target]
                    share = [weight / sum(measured) for weight in measured]
                    writer.write("gradient_share", iteration=number, steps=STEPS, norm=measured, share=share)
        if ended:
            writer.write("run_end", iterations=iterations, reason="finished", seconds=5.1 * iterations)
    return run


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session")
def typical_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve iterations, three evaluations of eight pictures, six of ten steps trained each. Read only."""
    folder = tmp_path_factory.mktemp("typical")
    return write_run(folder, iterations=12, evaluations=(0, 6, 12), pictures=8, fraction=0.6)
