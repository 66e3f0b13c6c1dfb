"""What does an adapter cost over `pipe(...)`? The same pictures from the same noise, both ways, in turn.

    python benchmarks/adapters.py                     # the embedded models; writes benchmarks/results/adapters.json
    python benchmarks/adapters.py --models FOLDER --steps 20 --output /tmp/adapters.json

Both sides encode the prompt and the empty prompt anew, make the same guided steps without noise, and decode. Latents of
the two agree to 1e-4, or the run fails: like is compared with like.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pcpo.data.files import write_text_atomic
from pcpo.models.base import Adapter
from pcpo.models.folders import read_header
from pcpo.models.loading import load_adapter
from pcpo.observe.environment import environment
from pcpo.samplers import make_sampler
from pcpo.samplers.rollout import sample

RESULTS = Path(__file__).parent / "results/adapters.json"
PROMPT, SCALE, TARGET = "red apple", 4.0, 1.05


class Ours:
    """Encode, sample and decode through the adapter."""

    def __init__(self, adapter: Adapter, x_T: torch.Tensor, steps: int) -> None:
        self.adapter, self.x_T, self.steps = adapter, x_T, steps

    def __call__(self) -> torch.Tensor:
        adapter, ode = self.adapter, make_sampler("ode")
        adapter.embeddings = {}
        cond, grid = adapter.encode([PROMPT]), adapter.grid(self.steps)
        rows = torch.zeros(len(self.x_T), dtype=torch.long)

        def predict(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
            return adapter.predict(x, grid.timesteps[i].to(x), cond, rows, SCALE)

        latents = sample(predict, ode, ode.stats(grid), self.x_T)
        adapter.decode(latents)
        return latents


class Theirs:
    """`pipe(...)` with its own arguments; the latents are taken before they are decoded."""

    def __init__(self, adapter: Adapter, x_T: torch.Tensor, steps: int) -> None:
        self.pipe = copy.copy(adapter.pipe)
        self.pipe.scheduler = adapter.deterministic_scheduler()
        self.pipe.set_progress_bar_config(disable=True)
        side = {"height": adapter.resolution, "width": adapter.resolution}
        self.settings = {"num_inference_steps": steps, **side, **adapter.pipeline_arguments(SCALE)}
        self.x_T = x_T

    def __call__(self) -> torch.Tensor:
        kept = {}

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return kept.update(tensors) or tensors

        count = len(self.x_T)
        self.pipe(
            PROMPT,
            num_images_per_prompt=count,
            latents=self.x_T.clone(),
            output_type="pt",
            callback_on_step_end=keep,
            **self.settings,
        )
        return kept["latents"]


def timings(model: str, pictures: int, steps: int, repeats: int) -> dict[str, Any]:
    """Wall and processor seconds of every call of both sides, A B A B ..., and the ratios of their medians."""
    length = 1 if not {"text_encoder_3", "tokenizer_3"} - set(read_header(model).absent) else None
    adapter = load_adapter(model, max_sequence_length=length)
    x_T = torch.randn(pictures, *adapter.latent_shape, generator=torch.Generator().manual_seed(0))
    sides = {"adapter": Ours(adapter, x_T, steps), "pipeline": Theirs(adapter, x_T, steps)}
    torch.testing.assert_close(sides["adapter"](), sides["pipeline"](), rtol=0, atol=1e-4)
    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name]["wall"].append(time.perf_counter() - wall)
            times[name]["cpu"].append(time.process_time() - cpu)
    ratios = {
        clock: statistics.median(times["adapter"][clock]) / statistics.median(times["pipeline"][clock])
        for clock in ("wall", "cpu")
    }
    return {"pictures": pictures, "steps": steps, "ratio": ratios, "seconds": times}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["emoji-sd", "emoji-sd3"], help="names or pipeline folders")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = {
        "what": "encode, sample and decode by the adapter / by pipe(...)",
        "target": TARGET,
        "threads": args.threads,
        "repeats": args.repeats,
        "load_average": os.getloadavg()[0],
        "environment": environment(),
        "models": {model: timings(model, args.pictures, args.steps, args.repeats) for model in args.models},
    }
    for model, found in results["models"].items():
        print(f"{model}: wall {found['ratio']['wall']:.3f}, cpu {found['ratio']['cpu']:.3f}")
    write_text_atomic(args.output, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
