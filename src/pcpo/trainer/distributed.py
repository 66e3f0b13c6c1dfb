"""This process among those of a run: who does which pictures, and how they meet.

Collectives are few and explicit: outcomes and rewards after every part of an iteration, gradients once per optimiser
step, metrics once per iteration. Control data goes over gloo, gradients over the device's backend.
"""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pcpo.errors import ConfigError, DistributedError, Interrupted, MemoryLimitError, PCPOError, one_line
from pcpo.models.base import Adapter
from pcpo.models.lora import trainable
from pcpo.trainer import zero
from pcpo.trainer.config import Config
from pcpo.types import Reward

BUCKET = 1 << 26  # bytes that one all-reduce moves
PRESENCE_BYTES = 4  # per parameter: whether a process has a gradient of it, in float32
PATIENCE = 1800.0  # seconds that a process waits for the others, at least
REMOTE_DEADLINE = 50.0  # of remote rewards that name none
Result = TypeVar("Result")


class Runtime:
    """Rank r of `world` processes. This class is the single process; `Processes` are several of them."""

    rank, world = 0, 1
    sharded = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes: events, pictures, checkpoints, weights, terminal."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The contiguous rows of `count` that are this process's; the first processes take one more where uneven."""
        least, more = divmod(count, self.world)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def every(self, work: Callable[[], Result]) -> list[Result]:
        """Do `work` in every process and leave together: results in rank order, or the first rank's error everywhere.

        Results must fit JSON where there are several processes.
        """
        return [work()]

    def main(self, work: Callable[[], Result]) -> Result | None:
        """Do `work` in the main process, and leave together; None elsewhere."""
        done: list[Result] = []
        self.every(lambda: done.append(work()) if self.is_main else None)
        return done[0] if done else None

    def gather(self, value: Tensor) -> Tensor:
        """Rows [n_r, ...] of all processes, on the CPU, in rank order: [sum n_r, ...]."""
        return value.cpu()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, the same bits in all of them; may reuse the memory of `value`."""
        return value

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every .grad by its sum over the processes."""

    def shard(self, adapter: Adapter) -> None:
        """Split the frozen weights over the processes, where the launcher asks for it."""

    def split_optimizer(self, adapter: Adapter, config: Config) -> zero.ZeroAdamW | None:
        """The optimiser that is split over the processes, where the launcher asks for it."""
        return None

    def meet(self, collective: Callable[[], Result]) -> Result:
        """Do what all processes do together. Raises DistributedError where another one is gone."""
        return collective()

    def close(self) -> None:
        """Leave the others, once all are done."""


class Processes(Runtime):
    """Several processes, connected by torch.distributed, which accelerate has set up.

    `splits` "FSDP": frozen weights are split by FSDP2 (what is trained is not: a LoRA is small). "ZeRO": DeepSpeed,
    which `accelerator` has set up, splits gradients and optimiser of a full fine-tuning. Model calls or
    backward passes are then collectives, so all processes must make as many.
    """

    def __init__(self, timeout: timedelta, splits: str | None = None, accelerator: Any = None) -> None:
        self.rank, self.world, self.sharded = dist.get_rank(), dist.get_world_size(), splits is not None
        self.splits, self._accelerator = splits, accelerator
        self._control = dist.new_group(backend="gloo", timeout=timeout)
        self.bytes_reduced = 0

    def share(self, count: int) -> slice:
        """As in `Runtime`. Raises ConfigError where sharded processes would not get as many each."""
        if self.sharded and count % self.world:
            raise ConfigError(
                f"{count} pictures for {self.world} processes, which must make as many model calls each",
                where=str(self.splits),
                fix="make batch.prompts * batch.group_size and the evaluation's pictures multiples of the processes",
            )
        return super().share(count)

    def every(self, work: Callable[[], Result]) -> list[Result]:
        """As in `Runtime`. Raises DistributedError where another process has failed in a way that is none of ours."""
        failure: BaseException | None = None
        outcome: dict[str, Any] = {}
        try:
            outcome["result"] = work()
        except (Exception, Interrupted) as error:
            if self.sharded and (not isinstance(error, PCPOError | Interrupted) or isinstance(error, MemoryLimitError)):
                raise  # perhaps amid a model call, where the others wait: they end when this process does
            failure, outcome["error"] = error, _describe(error)
        try:
            outcomes = [json.loads(part.numpy().tobytes()) for part in self._gather(_as_bytes(outcome))]
        except DistributedError:
            if failure is not None:
                raise failure from None
            raise
        for rank, other in enumerate(outcomes):
            if "error" in other:
                raise failure if failure is not None and rank == self.rank else _rebuild(other["error"], rank)
        return [other["result"] for other in outcomes]

    def gather(self, value: Tensor) -> Tensor:
        """As in `Runtime`."""
        return torch.cat(self._gather(value.detach().cpu().contiguous()))

    def sum(self, value: Tensor) -> Tensor:
        """As in `Runtime`."""
        self.bytes_reduced += value.numel() * value.element_size()
        _meet(lambda: dist.all_reduce(value))
        return value

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """As in `Runtime`, in flat buckets. A parameter that no process has a gradient of keeps none."""
        have = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
        wanted = [p for p, count in zip(parameters, self.sum(have).tolist(), strict=True) if count]
        for bucket in _buckets(wanted):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for parameter, part in zip(bucket, total.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)

    def shard(self, adapter: Adapter) -> None:
        """As in `Runtime`."""
        if self.splits != "FSDP":
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # what such a warning is about, changing an output in place, no adapter does
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        module = adapter.place()
        mesh = init_device_mesh(adapter.device.type, (self.world,))
        trained = {parameter for parameter in module.parameters() if parameter.requires_grad}
        blocks = set(getattr(module, "_no_split_modules", None) or ())
        for part in reversed(list(module.modules())):  # inner ones first; the model itself comes last
            if part is module or type(part).__name__ in blocks:
                fully_shard(part, mesh=mesh, ignored_params=trained)

    def split_optimizer(self, adapter: Adapter, config: Config) -> zero.ZeroAdamW | None:
        """As in `Runtime`."""
        if self.splits != "ZeRO":
            return None
        module = adapter.place()
        return zero.ZeroAdamW(self._accelerator, module, [p for _, p in trainable(module)], config)

    def meet(self, collective: Callable[[], Result]) -> Result:
        """As in `Runtime`."""
        return _meet(collective)

    def close(self) -> None:
        """As in `Runtime`."""
        dist.destroy_process_group()

    def _gather(self, value: Tensor) -> list[Tensor]:
        """Tensors [n_r, ...] on the CPU, one per rank."""
        lengths = [torch.empty(1, dtype=torch.long) for _ in range(self.world)]
        _meet(lambda: dist.all_gather(lengths, torch.tensor([len(value)]), group=self._control))
        counts = [int(length) for length in lengths]
        padded = torch.cat([value, value.new_zeros(max(counts) - len(value), *value.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        _meet(lambda: dist.all_gather(parts, padded, group=self._control))
        return [part[:count] for part, count in zip(parts, counts, strict=True)]


def start(config: Config, reward: Reward | None = None) -> Runtime:
    """Join the processes that a launcher has started, or be the only one. Raises ConfigError for what cannot be split.

    `reward` stands in for the configured one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Runtime()
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    timeout = collective_timeout(config, reward)
    on_cpu = config.run.device == "cpu" or not torch.accelerator.is_available()
    splits = _splits()
    if splits is not None:
        _check_sharded(config, splits)
    by_deepspeed = splits == "ZeRO"
    if by_deepspeed:
        zero.check_installed()
    # accelerate knows DeepSpeed only where it was not told to stay on the CPU; there it needs the backend's name
    group = InitProcessGroupKwargs(timeout=timeout, backend="gloo" if by_deepspeed and on_cpu else None)
    accelerator = Accelerator(cpu=on_cpu and not by_deepspeed, mixed_precision="no", kwargs_handlers=[group])
    if by_deepspeed:
        zero.check_plugin(accelerator.deepspeed_plugin)
    if config.pictures < accelerator.num_processes:
        raise ConfigError(
            f"{config.pictures} pictures per iteration for {accelerator.num_processes} processes",
            where="batch",
            fix="start fewer processes, or raise batch.prompts or batch.group_size",
        )
    return Processes(timeout, splits, accelerator)


def _splits() -> str | None:
    """What accelerate's launcher asks to be split."""
    asked = {"FSDP": "ACCELERATE_USE_FSDP", "ZeRO": "ACCELERATE_USE_DEEPSPEED"}
    return next((name for name, key in asked.items() if os.environ.get(key, "false").lower() == "true"), None)


def _check_sharded(config: Config, splits: str) -> None:
    """Raise ConfigError for what FSDP2 or ZeRO-2 cannot do here."""
    fsdp, unequal = splits == "FSDP", "processes would not make as many model calls"
    if fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("only version 2 of FSDP is known", where="accelerate", fix="set fsdp_version: 2")
    fixed = bool(config.model.gradient_checkpointing)
    chosen = config.model.gradient_checkpointing
    reasons: dict[str, tuple[object, object, str]] = {
        "model.gradient_checkpointing": (fixed, chosen, "calls that run out of memory cannot be made again"),
        "evaluation.credit_probe": (0, config.evaluation.credit_probe, unequal),
        "credit.schedule": ("fixed", _is_fixed(config), unequal),
    }
    if fsdp:
        tune = ("lora", config.model.tune, "frozen weights are split, and a full fine-tuning has none")
        reasons["model.tune"] = tune
    else:
        other = "auto" if config.run.device == "cpu" and torch.accelerator.is_available() else config.run.device
        scaled = "bf16" if config.run.precision == "fp16" else config.run.precision
        reasons |= {
            "model.tune": ("full", config.model.tune, "the optimiser is split, and that of a LoRA is small"),
            "optim.name": ("adamw", config.optim.name, "moments are split where blocks of 8 bits would not end"),
            "run.precision": (scaled, config.run.precision, "its losses are not scaled"),
            "run.device": (other, config.run.device, "DeepSpeed computes on the accelerator that is there"),
        }
    for where, (wanted, found, reason) in reasons.items():
        if wanted != found:
            fix = f"use {wanted}, or configs/accelerate/ddp.yaml"
            raise ConfigError(f"{found} does not go with {splits}: {reason}", where=where, fix=fix)


def _is_fixed(config: Config) -> str:
    return "adaptive" if config.credit.schedule == "adaptive" else "fixed"


def local_device() -> torch.device:
    """The device of this process, among those that a launcher has started."""
    from accelerate import PartialState

    return PartialState().device


def collective_timeout(config: Config, reward: Reward | None = None) -> timedelta:
    """How long a process waits for the others: longer than all rewards of an evaluation may take, twice over."""
    parts = [*(config.reward if reward is None else []), *config.evaluation.rewards]
    given = [part.options.get("deadline", REMOTE_DEADLINE) for part in parts] + [getattr(reward, "deadline", 0.0)]
    deadline = sum(seconds for seconds in given if isinstance(seconds, int | float))
    return timedelta(seconds=max(PATIENCE, 2 * deadline + 600))


def _meet(collective: Callable[[], Result]) -> Result:
    try:
        return collective()
    except RuntimeError as error:  # DistBackendError and DistNetworkError are of this class too
        raise DistributedError.gone(error, f"process {dist.get_rank()}") from error


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in order, of one dtype and at most `BUCKET` bytes (or a single one) a bucket."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if not buckets or size > room or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(parameter)
        room -= size
    return buckets


def _as_bytes(record: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(record).encode("ascii")), dtype=torch.uint8)


def _describe(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Interrupted):
        return {"signal": int(error.number)}
    if isinstance(error, PCPOError):
        return {"class": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
    return {"class": type(error).__name__, "what": one_line(error), "foreign": True}


def _rebuild(described: dict[str, Any], rank: int) -> BaseException:
    """The error of another process, as it would be here."""
    if "signal" in described:
        return Interrupted(signal.Signals(described["signal"]))
    where = f"process {rank}"
    if "foreign" in described:
        return DistributedError(f"{described['class']}: {described['what']}", where=where, fix="look at what it said")
    where += f", {described['where']}" if described["where"] else ""
    kind = _kinds()[described["class"]]
    error = kind.__new__(kind)  # a class may ask for more, which tells of the other process only
    PCPOError.__init__(error, described["what"], where=where, fix=described["fix"])
    return error


def _kinds() -> dict[str, type[PCPOError]]:
    """Our errors by name."""
    found, new = {}, [PCPOError]
    while new:
        kind = new.pop()
        found[kind.__name__] = kind
        new += kind.__subclasses__()
    return found


__all__ = ["Processes", "Runtime", "collective_timeout", "local_device", "start"]
