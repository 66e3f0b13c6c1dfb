"""Peak memory of a run, part by part and phase by phase, from its configuration and its model's alone."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open

from pcpo.models.base import Adapter
from pcpo.models.folders import embedded_folder
from pcpo.models.lora import trainable
from pcpo.plan.counts import Counts, count
from pcpo.plan.meter import AllocationMeter
from pcpo.plan.simulate import Simulation
from pcpo.plan.skeleton import conditioning, part_bytes, skeleton
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import validate
from pcpo.trainer.cost import iteration_cost
from pcpo.trainer.measure import LIMIT, kept_every
from pcpo.trainer.parts import build_algorithm

GIB = 1 << 30
# What the CUDA context takes of the device beside tensors, and the workspaces of cuDNN and cuBLAS.
CUDA_CONTEXT = GIB // 2
# What kernels of the CPU load and keep once they have been called.
CPU_KERNELS = 45 << 20
# Resident memory of CPU calls, as a share of the geometric mean of what they hold at their peak and of all they ever
# allocate; on the embedded models it is 0.51 to 0.80. See `kept_by_allocator`.
CPU_ALLOCATOR = 0.68


@dataclass
class MemoryPlan:
    """Bytes by part; `resident` are there all the time, `phases` hold what one phase adds to them (its parts, bytes).

    unknown: rewards whose models could not be sized. host: bytes kept in the machine's memory beside an accelerator.
    """

    device: str
    resident: dict[str, int]
    phases: dict[str, dict[str, int]]
    host: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def total(self, phase: str) -> int:
        """Bytes alive at the peak of a phase."""
        return sum(self.resident.values()) + sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """The phase with the highest peak."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes at the highest peak of all phases."""
        return self.total(self.peak_phase)


@dataclass(frozen=True)
class Line:
    """A cost that grows with the number of rows in a model call: at(n) = fixed + each * n."""

    fixed: float
    each: float

    @classmethod
    def through(cls, one: tuple[int, float], two: tuple[int, float]) -> Line:
        """The line through two points (rows, cost), never falling; a constant where the rows are the same."""
        (n, a), (m, b) = one, two
        each = max(0.0, (b - a) / (m - n)) if m != n else 0.0
        return cls(b - each * m, each)

    def at(self, rows: int) -> float:
        """The cost of a call of so many rows."""
        return self.fixed + self.each * rows


@dataclass(frozen=True)
class Activations:
    """Bytes that a call needs beyond what stays: sampling and VAE by pictures, training by (picture, step) pairs."""

    sampling: Line
    training: Line
    decoding: Line


@dataclass
class Model:
    """What one configuration is on the meta device: its skeleton and counts, and the memory of its calls.

    activations: bytes of the tensors alive at a call's peak. resident: bytes that they make the C library hold.
    """

    config: Config
    adapter: Adapter
    counts: Counts
    activations: Activations
    resident: Activations


def model_of(config: Config, evaluation_prompts: int = 1 << 30) -> Model:
    """Build the skeleton of the configured model. Raises ModelError and ConfigError."""
    adapter = skeleton(config)
    trained = build_algorithm(config, adapter).trained(0)
    return Model(config, adapter, count(config, len(trained), evaluation_prompts), *simulated(config))


def simulated(config: Config) -> tuple[Activations, Activations]:
    """`Model.activations` and `Model.resident`; settings that differ in batch sizes only are simulated once."""
    run = config.run.model_dump(include={"precision", "vae_slicing", "vae_tiling"})
    kept = config.model_dump(mode="json", include={"model", "sampler", "credit", "objective", "kl"}) | {"run": run}
    return _simulated(json.dumps(kept, sort_keys=True))


@functools.lru_cache(maxsize=64)
def _simulated(settings: str) -> tuple[Activations, Activations]:
    config = validate(json.loads(settings))
    simulation = Simulation(config, skeleton(config))
    alive, resident = [], []
    for call in (simulation.forward, simulation.update, simulation.decode):
        one, two = call(1), call(2)
        alive.append(Line.through((1, one.peak), (2, two.peak)))
        resident.append(Line.through((1, kept_by_allocator(one)), (2, kept_by_allocator(two))))
    return Activations(*alive), Activations(*resident)


def kept_by_allocator(call: AllocationMeter) -> float:
    """Bytes of resident memory that a call on the CPU comes to.

    The C library can use a freed block for another tensor of its size only where a neighbour is free as well (it places
    aligned blocks with room to spare), and small objects that stay, of Python and of autograd, keep neighbours apart.
    If it used every freed block again, a call would keep its peak; if none, its turnover. What it keeps is estimated as
    CPU_ALLOCATOR sqrt(peak turnover), the peak at the least: gradient checkpointing lowers the peak and raises the
    turnover. Blocks of more than 32 MiB are given back when they are freed, which is not in the estimate.
    """
    return max(call.peak, CPU_ALLOCATOR * math.sqrt(call.peak * call.turnover))


def planned_device(config: Config) -> str:
    """ "cpu" or the kind of accelerator that the plan is for; one that is asked for need not be there."""
    if config.run.device != "auto":
        return config.run.device
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else "cpu"


def estimate(model: Model, prompts: int, measured: Activations | None = None, process: int | None = None) -> MemoryPlan:
    """The memory of a run on `prompts` prompts in all; its activations are simulated where they were not measured.

    process: bytes that are there before any tensor; None: those of this process, or of a CUDA context.
    """
    config, adapter, counts = model.config, model.adapter, model.counts
    device = planned_device(config)
    calls = measured or (model.resident if device == "cpu" else model.activations)
    offload = config.run.offload != "none" and device != "cpu"
    trained = sum(p.numel() for _, p in trainable(adapter.unwrapped))
    weights = _weights(config, adapter)
    encoders, backbone, vae = ({k: v for k, v in weights.items() if k[1] == role} for role in ("text", "net", "vae"))
    resident = {"CUDA context" if device != "cpu" else "Python and libraries": process or _process(device)}
    resident |= {_label(key): size for key, size in backbone.items()}
    idle = {**encoders, **vae}
    host = {_label(key): size for key, size in idle.items()} if offload else {}
    if config.run.offload == "drop":
        host = {name: size for name, size in host.items() if name not in map(_label, encoders)}
        idle = {key: size for key, size in idle.items() if key not in encoders}
    if not offload:
        resident |= {_label(key): size for key, size in idle.items()}
    resident |= _trained_state(config, adapter, trained)
    cond = conditioning(adapter, 1).prompt
    one = sum(value.nbytes for value in cond.values())
    shown = min(config.evaluation.num_prompts, prompts)
    resident["prompt embeddings"] = (config.batch.prompts + shown + 2) * one + (device == "cpu") * prompts * one
    if device != "cpu":
        host["prompt embeddings"] = prompts * one
    rewards, unknown = _rewards(config, device)
    resident |= rewards

    latent = torch.Size(adapter.latent_shape).numel()
    kept = iteration_cost(config, trained_steps=counts.trained_steps, latent=latent, parameters=trained, tensors=1)
    trajectory, gradients = {"trajectory": kept.trajectory}, {"gradients": 4 * trained}
    moved = {_label(key): size for key, size in vae.items()} if offload else {}

    phases = {
        "rollout": trajectory | {"activations, sampling": int(calls.sampling.at(counts.rollout_size))},
        "decoding": trajectory | moved | {"activations, VAE": int(calls.decoding.at(counts.rollout_size))},
        "update": trajectory | gradients | {"activations, training": int(calls.training.at(counts.update_size))},
        "optimiser step": trajectory | gradients | {"AdamW's working memory": 4 * trained * (device != "cpu")},
    }
    if counts.rollout_calls > config.sampler.steps:
        field = 4 * latent * counts.pairs
        phases["joining the rollout's calls"] = trajectory | {"one of its fields, joined": field}
    if counts.probe_size:
        rows = 2 * counts.trained_steps * trained
        stride = kept_every([p for _, p in trainable(adapter.unwrapped)], counts.trained_steps)
        phases["credit probe"] = (
            trajectory
            | {"gradients of each step": 4 * min(LIMIT, rows // stride) + 4 * trained}
            | {"activations, credit probe": int(calls.training.at(counts.probe_size))}
        )
    plan = MemoryPlan(device, resident, phases, host, unknown)
    if offload:
        encoding = {_label(key): size for key, size in encoders.items()}
        # the backbone comes to the device only after all prompts have been encoded
        here = sum(size for name, size in resident.items() if name != "CUDA context" and name not in rewards)
        phases["encoding the prompts"] = encoding | {"not there yet": -here}
    return plan


def _weights(config: Config, adapter: Adapter) -> dict[tuple[str, str, str], int]:
    """(component, role, dtype) -> bytes; what is trained as a LoRA is left out."""
    found: dict[tuple[str, str, str], int] = {}
    lora = 4 * sum(p.numel() for _, p in trainable(adapter.unwrapped)) if config.model.tune == "lora" else 0
    for name, part in adapter.parts().items():
        role = "net" if name == adapter.backbone_name else "vae" if name == "vae" else "text"
        for dtype, size in part_bytes(part).items():
            if role == "net" and dtype == torch.float32:
                size -= lora
            if size >= 1 << 10:
                found[name, role, str(dtype).removeprefix("torch.")] = size
    return found


def _label(key: tuple[str, str, str]) -> str:
    return f"{key[0]}, {key[2]}"


def _trained_state(config: Config, adapter: Adapter, trained: int) -> dict[str, int]:
    """Weights that are trained beside the backbone's own, moments, averages and the reference."""
    full = config.model.tune == "full"
    moments = 8 if config.optim.name == "adamw" else 2
    state = {f"{'moments' if full else 'LoRA and its moments'}": (moments + 4 * (not full)) * trained}
    if config.train.replay and config.train.updates * config.train.epochs > 1:
        state["weights that sampled"] = 4 * trained
    if config.optim.ema_decay is not None:
        state["moving average"] = 4 * trained
    if full and (config.kl.form != "none" or config.credit.apply == "lambda"):
        state["reference model"] = sum(part_bytes(adapter.unwrapped).values())
    return state


def _process(device: str) -> int:
    """What is there before any tensor. On the CPU: this very process, which has imported what training imports."""
    return int(psutil.Process().memory_info().rss) + CPU_KERNELS if device == "cpu" else CUDA_CONTEXT


def _rewards(config: Config, device: str) -> tuple[dict[str, int], list[str]]:
    """Bytes of reward models on the planned device, from their files, and the names that cannot be sized."""
    known: dict[str, int] = {}
    unknown: list[str] = []
    for part in [*config.reward, *config.evaluation.rewards]:
        places = [part.options[key] for key in ("model", "captioner", "encoder") if key in part.options]
        if part.name == "emoji_clip":
            places = [str(embedded_folder("emoji-clip"))]
        if str(part.options.get("device", "cpu")).split(":")[0] != device or part.name in ("http", "vlm_judge"):
            continue
        width = 4 if part.options.get("dtype", "float32") == "float32" else 2
        for place in places:
            numbers = _stored_numbers(Path(str(place)).expanduser())
            if numbers is None:
                unknown.append(f"{part.name} ({place})")
            else:
                known[f"reward {part.name}"] = known.get(f"reward {part.name}", 0) + numbers * width
    return known, unknown


def _stored_numbers(folder: Path) -> int | None:
    """Numbers in the safetensors files of a folder; None where there is nothing to read."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    total = 0
    try:
        for path in files:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    total += torch.Size(file.get_slice(name).get_shape()).numel()
    except (OSError, SafetensorError):
        return None
    return total if files else None


__all__ = ["GIB", "Activations", "Line", "MemoryPlan", "Model", "estimate", "model_of", "planned_device", "simulated"]
