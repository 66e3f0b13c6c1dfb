"""What does the library cost on top of the model? A training iteration over the bare model calls in it.

    python benchmarks/overhead.py                       # the embedded models; writes benchmarks/results/overhead.json
    python benchmarks/overhead.py --models FOLDER --set batch.group_size=2 --output /tmp/overhead.json

Both do the same model work on the same weights and shapes: the forward passes of a rollout (prompt and empty half in
one batch), the decoding of its pictures, forward and backward of every (picture, step) pair, and the optimiser steps.
The iteration adds all that the library does: prompts, noise, sampler, reward, advantages, credit, loss, metrics, the
event. Text encoding is in neither: embeddings are cached after their first use. Evaluation is off.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pcpo import PCPOTrainer, load_config
from pcpo.models.folders import embedded_folder, read_header
from pcpo.models.loading import load_adapter
from pcpo.models.lora import add_lora
from pcpo.observe.events import EventWriter
from pcpo.trainer.config import Config
from pcpo.trainer.model import folding
from timing import RESULTS, Times, header, interleaved, ratio, resident_mib, write

PRESETS = {"StableDiffusionPipeline": "pcpo_sd", "StableDiffusion3Pipeline": "pcpo_sd3"}
SETTINGS = [
    "prompts=[red apple, blue fish, green tree, yellow sun]",
    "batch.prompts=4",
    "batch.group_size=4",
    "sampler.steps=10",
    "evaluation.credit_probe=0",
]
TARGET = 1.10


class Iteration:
    """A training iteration of the library; it writes nothing but its event."""

    def __init__(self, config: Config) -> None:
        self.trainer = PCPOTrainer(config=config, quiet=True)
        self.backbone = self.trainer.adapter.backbone

    def __call__(self) -> None:
        with EventWriter(self.trainer.folder / "events.jsonl") as events:
            self.trainer.learner.run(events)  # train() would evaluate too


class ModelCalls:
    """The model work of that iteration with nothing around it: same module, same shapes, made-up numbers."""

    def __init__(self, config: Config) -> None:
        self.config, model = config, config.model
        adapter = load_adapter(model.path, resolution=model.resolution, max_sequence_length=model.max_sequence_length)
        add_lora(adapter, config.model.lora.rank)
        steps, pictures, train = config.sampler.steps, config.pictures, config.train
        timesteps = adapter.grid(steps).timesteps.float()
        trained = int(steps * train.fraction) if train.select == "first" else steps
        pairs = pictures // train.updates * trained
        size = config.batch.rollout or pictures
        sizes = [size] * (pairs // size) + [pairs % size] * (pairs % size > 0)

        def guided(size: int, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            cond = adapter.encode(config.prompts[:1]).rows(torch.zeros(size, dtype=torch.long), guided=True)
            return torch.randn(2 * size, *adapter.latent_shape), timestep.expand(2 * size), cond

        self.adapter, self.backbone, self.updates = adapter, adapter.backbone, train.updates
        self.rollout = [guided(size, timestep) for timestep in timesteps] * (pictures // size)
        self.update = [guided(size, timesteps[0]) for size in sizes]
        self.latents = torch.randn(pictures, *adapter.latent_shape).split(size)
        parameters = [p for p in adapter.backbone.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.optim.learning_rate)

    def __call__(self) -> None:
        with folding(self.config, self.adapter):
            self._call()

    def _call(self) -> None:
        with torch.no_grad():
            for inputs in self.rollout:
                self.adapter.forward(*inputs)
        for latents in self.latents:
            self.adapter.decode(latents)
        for _ in range(self.updates):
            for inputs in self.update:
                self.adapter.forward(*inputs).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


SIDES: dict[str, Callable[[Config], Callable[[], None]]] = {"iteration": Iteration, "model_calls": ModelCalls}


def configure(model: str, folder: str, overrides: Sequence[str] = ()) -> Config:
    """The preset of the model's family, made small, with a run folder that is not kept."""
    preset = PRESETS[read_header(model).pipeline]
    return load_config(preset, [f"model.path={model}", *SETTINGS, *overrides, f"run.output={folder}/run"])


def measure(config: Config, repeats: int, warm_up: int = 2) -> Times:
    """Wall and processor seconds of every run of both sides, in turn: A B A B ..."""
    return interleaved({name: make(config) for name, make in SIDES.items()}, repeats, warm_up)


def peak_rss(side: str, model: str, overrides: Sequence[str], threads: int) -> float:
    """Peak resident memory in MiB of a process that runs one side three times."""
    command = [sys.executable, __file__, "--peak", side, "--models", model, "--threads", str(threads)]
    done = subprocess.run([*command, "--set", *overrides], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def report_peak(side: str, model: str, overrides: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = SIDES[side](configure(model, folder, overrides))
        for _ in range(3):
            run()
    print(resident_mib())


def timings(model: str, repeats: int, overrides: Sequence[str]) -> dict[str, Any]:
    """The times of one model and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        config = configure(model, folder, overrides)
        times = measure(config, repeats)
    return {
        "preset": config.name,
        "pictures": config.pictures,
        "steps": config.sampler.steps,
        "updates": config.train.updates,
        "wall": ratio(times, *SIDES, "wall"),
        "cpu": ratio(times, *SIDES, "cpu"),
        "seconds": times,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="embedded names or pipeline folders; default: both that ship")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, as in pcpo train")
    parser.add_argument("--output", type=Path, default=RESULTS / "overhead.json")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    models = args.models or [name for name in ("emoji-sd", "emoji-sd3") if embedded_folder(name).is_dir()]
    if args.peak:
        return report_peak(args.peak, models[0], args.set)
    what = "training iteration / its bare model calls"
    results = header(what, target=TARGET, threads=args.threads, repeats=args.repeats)
    results["models"] = {model: timings(model, args.repeats, args.set) for model in models}
    for model, found in results["models"].items():
        found["peak_rss_mib"] = {side: round(peak_rss(side, model, args.set, args.threads), 1) for side in SIDES}
        for clock in ("wall", "cpu"):
            print(f"{model} {clock}: {found[clock]['ratio']:.3f}", end=" ")
            print(f"({found[clock]['min']:.3f} to {found[clock]['max']:.3f})")
        print(f"{model} peak memory, MiB: {found['peak_rss_mib']}")
    write(args.output, results)


if __name__ == "__main__":
    main()
