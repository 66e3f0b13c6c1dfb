"""Fixed prompts and noises: what the tuned model makes of them, and how the gradient is shared among the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pcpo.credit.diagnostics import share
from pcpo.data.images import contact_sheet, save_png
from pcpo.data.prompts import Prompt
from pcpo.models.base import Adapter
from pcpo.models.lora import trainable
from pcpo.observe.console import Console
from pcpo.rewards.base import evaluate
from pcpo.samplers import make_sampler
from pcpo.trainer.collect import calls, evaluation_request, sample_pictures
from pcpo.trainer.config import Config
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
    ) -> None:
        settings = config.evaluation
        sampler = make_sampler("ode") if settings.deterministic else algorithm.sampler
        steps = settings.steps or config.sampler.steps
        self.grid = adapter.grid(steps, kind=config.sampler.grid, shift=config.sampler.shift)
        self.stats = sampler.stats(self.grid)
        scale = settings.guidance_scale
        self.policy = Policy(adapter, self.grid, config.sampler.guidance_scale if scale is None else scale)
        self.sampler, self.reward = sampler, reward
        self.request = evaluation_request(list(prompts[: settings.num_prompts]), settings.per_prompt)
        self.cond = adapter.encode([p.text for p in self.request.prompts])
        self.columns = settings.per_prompt * max(1, 8 // settings.per_prompt)
        self.size = config.batch.rollout or config.pictures

    def run(self, iteration: int, folder: Path, console: Console) -> dict[str, Any]:
        """Sample, score, write `images/NNNNNN*`, and return the fields of the evaluation event."""
        request = self.request
        with console.task("evaluation", len(request.sample_ids) * self.grid.num_steps) as advance:
            parts = calls(self.policy, request, self.cond, self.size, advance)
            pictures = sample_pictures(parts, self.sampler, self.stats)
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
            "prompts": request.texts,
            "values": [float(v) if ok else None for v, ok in zip(result.values, result.valid, strict=True)],
            "sheet": sheet,
            "pictures": names,
        }


def gradient_share(update: Update, pictures: int) -> dict[str, Any]:
    """Norm of the loss gradient of every trained step by itself, at the sampling policy, on a few pictures.

    Takes the pictures with the largest advantages; one backward pass a step. Fields of the gradient_share event.
    """
    parameters = [p for _, p in trainable(update.policy.adapter.backbone)]
    chosen = update.advantage.abs().argsort(descending=True, stable=True)[:pictures].sort().values
    norms = []
    for position in range(len(update.trajectory.steps)):
        out = update.loss(chosen, torch.full((len(chosen),), position))
        gradients = torch.autograd.grad(out.per_step.mean(), parameters, allow_unused=True)
        norms.append(torch.stack([g.norm() for g in gradients if g is not None]).norm())
    norm = torch.stack(norms).double().cpu()
    return {
        "steps": update.trajectory.steps.tolist(),
        "norm": norm.tolist(),
        "share": share(norm).tolist(),
        "native_share": share(update.credit.native).tolist(),
        "target_share": share(update.credit.target).tolist(),
    }
