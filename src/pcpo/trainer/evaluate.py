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
from pcpo.rewards.base import evaluate
from pcpo.rewards.mixing import WeightedSum
from pcpo.samplers import make_sampler
from pcpo.trainer.collect import calls, decode, evaluation_request, sample_latents
from pcpo.trainer.config import Config
from pcpo.trainer.measure import flat, kept_every, split_groups
from pcpo.trainer.memory import CallSizes
from pcpo.trainer.parts import Algorithm
from pcpo.trainer.step import Policy, Update
from pcpo.types import Reward


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
        self.sizes = sizes

    def run(self, iteration: int, folder: Path, console: Console, warn: Callable[[str], object]) -> dict[str, Any]:
        """Sample, score, write `images/NNNNNN*`, and return the fields of the evaluation event."""
        request = self.request

        def sample(size: int) -> Tensor:
            with console.task("evaluation", len(request.sample_ids) * self.grid.num_steps) as advance:
                return sample_latents(calls(self.policy, request, self.cond, size, advance), self.sampler, self.stats)

        latents = self.sizes.attempt("rollout", sample, warn)
        pictures = self.sizes.attempt("decode", partial(decode, self.policy.adapter, latents), warn)
        metadata = [request.prompts[i].metadata for i in request.prompt_index.tolist()]
        result = evaluate(self.reward, pictures, request.texts, metadata)
        label = f"{iteration:06d}"
        sheet = f"images/{label}.png"
        save_png(contact_sheet(pictures, columns=self.columns), folder / sheet)
        names = [f"images/{label}/{n:02d}.png" for n in range(len(pictures))]
        for picture, name in zip(pictures, names, strict=True):
            save_png(picture, folder / name)
        scored = result.values[result.valid]
        return {
            "iteration": iteration,
            "reward_mean": float(scored.mean()) if len(scored) else None,
            "reward_std": float(scored.std(correction=0)) if len(scored) else None,
            "rewards": {name: float(part[result.valid].mean()) for name, part in result.info.items()},
            **self._held_out(pictures, metadata),
            **self.watcher(pictures, self.per_prompt),
            "prompts": request.texts,
            "values": [float(v) if ok else None for v, ok in zip(result.values, result.valid, strict=True)],
            "sheet": sheet,
            "pictures": names,
        }

    def _held_out(self, pictures: Tensor, metadata: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Mean of each held-out reward over the pictures that it judges, and over those of each prompt.

        None stands where it judges none.
        """
        means: dict[str, float | None] = {}
        rows: dict[str, list[float | None]] = {}
        for name, reward, _ in self.held_out.parts if self.held_out else []:
            result = evaluate(reward, pictures, self.request.texts, metadata, name=name)
            means[name] = _mean(result.values, result.valid)
            groups = result.values.split(self.per_prompt), result.valid.split(self.per_prompt)
            rows[name] = [_mean(values, valid) for values, valid in zip(*groups, strict=True)]
        return {"held_out": means, "held_out_per_prompt": rows}


def _mean(values: Tensor, valid: Tensor) -> float | None:
    return float(values[valid].mean()) if valid.any() else None


def gradient_share(update: Update, pictures: int, group_size: int) -> dict[str, Any]:
    """Norm, signal and variance of the loss gradient of every trained step by itself, at the sampling policy.

    Takes the pictures with the largest advantages, and two backward passes a step: one for each half of their prompt
    groups. signal and variance are those of the mean over these pictures, the credit included (`signal_and_noise`):
    the signals add up to an estimate of the squared norm of the expected gradient, the variances to its noise. Fields
    of the gradient_share event.
    """
    chosen = update.advantage.abs().argsort(descending=True, stable=True)[:pictures].sort().values
    steps = len(update.trajectory.steps)
    halves = split_groups(chosen, group_size)
    counts = [len(half) for half in halves]
    rows = [torch.stack([_gradient(update, half, step) for step in range(steps)]) for half in halves]
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


def _gradient(update: Update, pictures: Tensor, position: int) -> Tensor:
    """Mean gradient of one step's loss over pictures, [n] coordinates kept (see `StepGradients`)."""
    parameters = [p for _, p in trainable(update.policy.adapter.backbone)]
    out = update.loss(pictures, torch.full((len(pictures),), position))
    gradients = torch.autograd.grad(out.per_step.mean(), parameters, allow_unused=True)
    stride = kept_every(parameters, len(update.trajectory.steps))
    return flat([torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)], stride)
