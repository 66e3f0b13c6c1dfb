"""Settings, rewards and readings that the tests of training share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from pcpo.models.lora import trainable
from pcpo.observe.events import read_events
from pcpo.trainer.configfile import merge

DIFFUSION = {"name": "ddim", "steps": 4, "eta": 1.0, "guidance_scale": 3.0}
FLOW = {"name": "flow_sde", "steps": 4, "eta": 0.7, "guidance_scale": 3.0}
SAMPLER = {"sd": DIFFUSION, "sd_v": DIFFUSION, "sd3": FLOW}
FAMILIES = tuple(SAMPLER)
SILENT = SimpleNamespace(write=lambda kind, **fields: fields)  # stands in for the log of a run


# Iterations of about 0.05 s
SMALL: dict[str, Any] = {
    "batch": {"prompts": 1, "group_size": 2},
    "sampler": {"steps": 2},
    "evaluation": {"every": 1000, "num_prompts": 1, "steps": 1},
}


def settings(family: str, folder: Any, output: Any, **changes: Any) -> dict[str, Any]:
    """Two prompts of three pictures, one iteration, four steps; `changes` are merged section by section."""
    base = {
        "name": "test",
        "model": {
            "path": str(folder),
            "lora": {"rank": 4, "targets": ["to_q", "to_v"]},
            "max_sequence_length": 1 if family == "sd3" else None,
        },
        "prompts": ["red", "a blue boat", "green tree"],
        "sampler": SAMPLER[family],
        "batch": {"prompts": 2, "group_size": 3},
        "train": {"iterations": 1},
        "optim": {"learning_rate": 1e-3},
        "evaluation": {"every": 2, "num_prompts": 2, "per_prompt": 1, "steps": 2, "credit_probe": 0},
        "run": {"output": str(output), "device": "cpu"},
    }
    return merge(base, changes)


def reddish(images, prompts, metadata):
    """Mean of red minus mean of blue: differs from picture to picture on random models too."""
    means = images.double().mean((2, 3))
    return means[:, 0] - means[:, 2]


def pictures(count: int, height: int = 8, width: int = 6, seed: int = 0) -> torch.Tensor:
    """Noise, uint8 [count, 3, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def constant(images, prompts, metadata):
    return [1.0] * len(prompts)


def weights(trainer) -> dict[str, torch.Tensor]:
    """Copies of the trained parameters by name."""
    return {n: p.detach().clone() for n, p in zip(trainer.state.names, trainer.state.parameters, strict=True)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run(trainer):
    """Train, and return the run's log."""
    trainer.train()
    return read_events(trainer.folder / "events.jsonl")


def scramble(adapter, size=0.1):
    """Move the trained parameters away from where they started."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in trainable(adapter.unwrapped):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def figures(log):
    """What the log says, without times and speeds."""
    return (
        [event.model_copy(update={"seconds": {}, "pictures_per_second": None}) for event in log.iterations],
        log.evaluations,
        [event.iteration for event in log.checkpoints],
    )


def first_gradient(trainer):
    """Gradient of the first optimiser step, one flat vector, before clipping; nothing is updated."""
    taken = []

    def take(where):
        taken.append(torch.cat([p.grad.flatten() for p in trainer.state.parameters]))
        trainer.state.optimizer.zero_grad()
        return 0.0

    trainer.learner.updater._optimise = take
    trainer.learner.run(SILENT)
    return taken[0]
