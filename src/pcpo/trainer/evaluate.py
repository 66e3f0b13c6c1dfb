"""Fixed prompts and noises: what the tuned model makes of them, and how the gradient is shared among the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcpo.credit.adaptive import signal_and_noise
from pcpo.credit.diagnostics import share
from pcpo.data.images import contact_sheet, save_png
from pcpo.data.prompts import Prompt
from pcpo.evaluation.watch import Watcher
from pcpo.models.base import Adapter
from pcpo.models.lora import trainable
from pcpo.observe.console import Console
from pcpo.rewards.mixing import WeightedSum
from pcpo.samplers import make_sampler
from pcpo.trainer.collect import calls, decode, evaluation_request, sample_latents
from pcpo.trainer.config import Config
from pcpo.trainer.distributed import Runtime
from pcpo.trainer.measure import flat, kept_every, split_groups
from pcpo.trainer.memory import CallSizes
from pcpo.trainer.parts import Algorithm
from pcpo.trainer.schedule import own_rows
from pcpo.trainer.scoring import joined, score
from pcpo.trainer.step import Policy, Update
from pcpo.types import Reward, RewardResult


class Evaluator:
    """Samples the same pictures at every call, scores them and writes them into the run folder."""

    def __init__(
        self,
        config: Config,
        adapter: Adapter,
        algorithm: Algorithm,
        prompts: Sequence[Prompt],
        reward: Reward,
        sizes: CallSizes,
        held_out: WeightedSum | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        settings = config.evaluation
        sampler = make_sampler("ode") if settings.deterministic else algorithm.sampler
        steps = settings.steps or config.sampler.steps
        self.grid = adapter.grid(steps, kind=config.sampler.grid, shift=config.sampler.shift)
        self.stats = sampler.stats(self.grid)
        scale = settings.guidance_scale
        self.policy = Policy(adapter, self.grid, config.sampler.guidance_scale if scale is None else scale)
        self.sampler, self.reward, self.held_out = sampler, reward, held_out
        self.request = evaluation_request(list(prompts[: settings.num_prompts]), settings.per_prompt)
        self.cond = adapter.encode([p.text for p in self.request.prompts])
        self.per_prompt = settings.per_prompt
        self.columns = settings.per_prompt * max(1, 8 // settings.per_prompt)
        self.watcher = Watcher(adapter.device)
        self.sizes, self.runtime = sizes, runtime or Runtime()

    def run(self, iteration: int, folder: Path, console: Console, warn: Callable[[str], object]) -> dict[str, Any]:
        """Sample, score, write `images/NNNNNN*`, and return the fields of the evaluation event.

        Of several processes each samples and scores its share; the main one measures the pictures and writes them.
        """
        rows = self.runtime.share(len(self.request.sample_ids))
        kept: list[Tensor] = []
        records = self.runtime.every(lambda: self._work(rows, kept, console, warn))
        pictures = self.runtime.gather(kept[0])
        result = joined([record["reward"] for record in records])
        held_out = {name: joined([record["held_out"][name] for record in records]) for name in records[0]["held_out"]}
        label = f"{iteration:06d}"
        sheet = f"images/{label}.png"
        names = [f"images/{label}/{n:02d}.png" for n in range(len(pictures))]

        def write() -> dict[str, Any]:
            save_png(contact_sheet(pictures, columns=self.columns), folder / sheet)
            for picture, name in zip(pictures, names, strict=True):
                save_png(picture, folder / name)
            return self.watcher(pictures, self.per_prompt)

        figures = self.runtime.main(write) or {}
        scored = result.values[result.valid]
        return {
            "iteration": iteration,
            "reward_mean": float(scored.mean()) if len(scored) else None,
            "reward_std": float(scored.std(correction=0)) if len(scored) else None,
            "rewards": {name: float(part[result.valid].mean()) for name, part in result.info.items()},
            **self._held_out(held_out),
            **figures,
            "prompts": self.request.texts,
            "values": [float(v) if ok else None for v, ok in zip(result.values, result.valid, strict=True)],
            "sheet": sheet,
            "pictures": names,
        }

    def _work(self, rows: slice, kept: list[Tensor], console: Console, warn: Callable[[str], object]) -> dict[str, Any]:
        """Sample some rows of the request, [n, 3, H, W] uint8 into `kept`; their rewards, as `score` records them."""

        def sample(size: int) -> Tensor:
            with console.task("evaluation", (rows.stop - rows.start) * self.grid.num_steps) as advance:
                parts = calls(self.policy, self.request, self.cond, size, advance, rows)
                return sample_latents(parts, self.sampler, self.stats)

        adapter, side = self.policy.adapter, self.policy.adapter.resolution
        if rows.start == rows.stop:
            kept.append(torch.empty(0, 3, side, side, dtype=torch.uint8))
        else:
            latents = self.sizes.attempt("rollout", sample, warn)
            kept.append(self.sizes.attempt("decode", partial(decode, adapter, latents), warn))
        others = self.held_out.parts if self.held_out else []
        return {
            "reward": score(self.reward, kept[0], self.request, rows),
            "held_out": {name: score(reward, kept[0], self.request, rows, name) for name, reward, _ in others},
        }

    def _held_out(self, results: Mapping[str, RewardResult]) -> dict[str, Any]:
        """Mean of each held-out reward over the pictures that it judges, and over those of each prompt.

        None stands where it judges none.
        """
        means: dict[str, float | None] = {}
        rows: dict[str, list[float | None]] = {}
        for name, result in results.items():
            means[name] = _mean(result.values, result.valid)
            groups = result.values.split(self.per_prompt), result.valid.split(self.per_prompt)
            rows[name] = [_mean(values, valid) for values, valid in zip(*groups, strict=True)]
        return {"held_out": means, "held_out_per_prompt": rows}


def _mean(values: Tensor, valid: Tensor) -> float | None:
    return float(values[valid].mean()) if valid.any() else None


def gradient_share(
    update: Update,
    advantage: Tensor,
    pictures: int,
    group_size: int,
    runtime: Runtime,
    size: int,
) -> dict[str, Any]:
    """Norm, signal and variance of the loss gradient of every trained step by itself, at the sampling policy.

    Takes the pictures with the largest advantages, and two gradients a step, one for each half of their prompt groups,
    in calls of at most `size` pictures. signal and variance are those of the mean over these pictures, the credit
    included (`signal_and_noise`): the signals add up to an estimate of the squared norm of the expected gradient, the
    variances to its noise. Fields of the gradient_share event.

    advantage [B] is that of all pictures; `update` holds those of this process.
    """
    chosen = advantage.abs().argsort(descending=True, stable=True)[:pictures].sort().values
    steps = len(update.trajectory.steps)
    halves = split_groups(chosen, group_size)
    counts = [len(half) for half in halves]
    own = runtime.share(len(advantage))
    rows = [
        runtime.sum(
            torch.stack([_gradient(update, own_rows(half, own), len(half), step, size) for step in range(steps)])
        )
        for half in halves
    ]
    mean = torch.stack([row * (count / len(chosen)) for row, count in zip(rows, counts, strict=True)]).sum(0)
    norm = mean.norm(dim=1).double().cpu()
    fields = {"norm": norm.tolist(), "share": share(norm).tolist()}
    if len(rows) == 2:
        signal, variance = signal_and_noise(rows[0], rows[1], torch.ones(steps), (counts[0], counts[1]))
        fields |= {"signal": signal.tolist(), "variance": variance.tolist()}
    return {
        "steps": update.trajectory.steps.tolist(),
        **fields,
        "native_share": share(update.credit.native).tolist(),
        "target_share": share(update.credit.target).tolist(),
    }


def _gradient(update: Update, pictures: Tensor, count: int, position: int, size: int) -> Tensor:
    """Gradient of one step's loss over pictures, summed and divided by `count`, [n] coordinates kept."""
    parameters = [p for _, p in trainable(update.policy.adapter.backbone)]
    stride = kept_every(parameters, len(update.trajectory.steps))
    total = flat([torch.zeros_like(p) for p in parameters], stride)
    for part in pictures.split(size) if len(pictures) else ():
        out = update.loss(part, torch.full((len(part),), position))
        gradients = torch.autograd.grad(out.per_step.sum() / count, parameters, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        total += flat(found, stride)
    return total
