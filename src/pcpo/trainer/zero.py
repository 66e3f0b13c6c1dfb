"""DeepSpeed's ZeRO-2 for a full fine-tuning: gradients and AdamW's moments split over the processes."""

from __future__ import annotations

import logging
import math
import warnings
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pcpo.errors import ConfigError, DistributedError
from pcpo.trainer.config import Config

BUCKET = 1 << 24  # numbers that DeepSpeed reduces at once; its own default takes 2 GB in every process
MOMENTS = ("exp_avg", "exp_avg_sq")
LOCAL = "optimizer.part."


class ZeroAdamW:
    """AdamW on this process's part of the parameters, behind DeepSpeed's engine.

    Every backward pass is a meeting of all processes, and adds to this process's part of the gradient what it is the
    sum of. The network itself is called, not the engine, which would turn our autocast off.
    """

    def __init__(self, accelerator: Any, module: nn.Module, parameters: list[nn.Parameter], config: Config) -> None:
        optim = config.optim
        self.world, self.is_main = accelerator.num_processes, accelerator.is_main_process
        self.parameters, self.max_norm = parameters, optim.max_grad_norm
        inner = torch.optim.AdamW(
            parameters, lr=optim.learning_rate, betas=optim.betas, eps=optim.epsilon, weight_decay=optim.weight_decay
        )
        settings = accelerator.deepspeed_plugin.deepspeed_config
        settings |= {
            "managed_gradient_accumulation": False,  # a step is made when we say so
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.max_norm,
        }
        for name in ("reduce_bucket_size", "allgather_bucket_size"):
            settings["zero_optimization"].setdefault(name, BUCKET)
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated")  # called by DeepSpeed
        self.engine, _ = accelerator.prepare(module, inner)
        self.zero = self.engine.optimizer
        (flat,) = self.zero.single_partition_of_fp32_groups
        # what a first step would make, made now: a checkpoint may be loaded before it
        self.state: dict[str, Tensor] = {
            "step": torch.tensor(0.0),
            **{name: torch.zeros_like(flat) for name in MOMENTS},
        }
        inner.state[flat] = self.state
        self.zero._lazy_init_hp_params_optimizer_state()
        self._seen: set[int] = set()  # parameters that a backward pass since the last step gave a gradient
        for index, parameter in enumerate(parameters):
            parameter.register_hook(partial(self._see, index))

    def _see(self, index: int, gradient: Tensor) -> None:
        self._seen.add(index)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what has been accumulated."""
        self._seen.clear()
        self.zero.zero_grad(set_to_none=set_to_none)
        for held in (self.zero.averaged_gradients, self.zero.all_grad_tensors):
            held.update(dict.fromkeys(held))

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the sum of all processes' losses; DeepSpeed takes the mean.

        Raises DistributedError where another process is gone.
        """
        try:
            self.engine.backward(loss * self.world)
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise DistributedError.gone(error, f"process {dist.get_rank()}, backward pass") from error

    def step(self) -> float:
        """Clip and update; the norm before clipping. Where that is not finite nothing is changed, in any process.

        A parameter that no process has a gradient of stays as it is, as in one process; DeepSpeed takes its gradient
        for zero, and would let it decay.
        """
        kept = [(value, value.clone()) for value in self._without_gradient()]
        self.engine.step()
        with torch.no_grad():
            for value, before in kept:
                value.copy_(before)
        self._seen.clear()
        return math.inf if self.zero.overflow else float(self.engine.get_global_grad_norm())

    def _without_gradient(self) -> list[Tensor]:
        """Every parameter without gradient in all processes, and this process's part of its master copy and moments."""
        device = self.parameters[0].device
        seen = torch.tensor([i in self._seen for i in range(len(self.parameters))], dtype=torch.float32, device=device)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        found: list[Tensor] = []
        for parameter, has in zip(self.parameters, seen.tolist(), strict=True):
            if not has:
                found.append(parameter.detach())
                if (here := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
                    found += [here.get_hp_fragment(), *here.optim_fragment.values()]
        return found

    def part(self) -> dict[str, Tensor]:
        """This process's moments, not copied."""
        return {f"{LOCAL}{name}": value for name, value in self.state.items()}

    def whole(self) -> dict[str, Tensor]:
        """The moments of all parameters on the CPU, as AdamW in one process has them; empty but in the main process.

        All processes must ask.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            for name in MOMENTS:
                value = safe_get_full_optimizer_state(parameter, name)
                if self.is_main:
                    found[f"optimizer.{index}.{name}"] = value.cpu()
            if self.is_main:
                found[f"optimizer.{index}.step"] = self.state["step"].clone()
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `part` or `whole` gave, or AdamW in one process, after the weights were."""
        self.zero.refresh_fp32_params()
        if f"{LOCAL}step" in tensors:
            for name, value in self.state.items():
                value.copy_(tensors[f"{LOCAL}{name}"])
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        for value in self.state.values():
            value.zero_()  # also of a parameter that never had a gradient
        for index, parameter in enumerate(self.parameters):
            if f"optimizer.{index}.step" not in tensors:
                continue
            self.state["step"].copy_(tensors[f"optimizer.{index}.step"])
            for name in MOMENTS:
                value = tensors[f"optimizer.{index}.{name}"]
                if value.shape != parameter.shape:
                    raise ValueError(f"{name} of parameter {index} has shape {tuple(value.shape)}")
                safe_set_full_optimizer_state(parameter, value.to(parameter), name)


def check_installed() -> None:
    """Raise ConfigError where DeepSpeed is missing."""
    from accelerate.utils import is_deepspeed_available

    if not is_deepspeed_available():
        raise ConfigError(
            "DeepSpeed is asked for and not installed",
            where="accelerate",
            fix='pip install "pcpo[deepspeed]", or use configs/accelerate/ddp.yaml',
        )


def check_plugin(plugin: Any) -> None:
    """Raise ConfigError for what is asked of DeepSpeed and is not done here."""
    offloads = [plugin.offload_optimizer_device, plugin.offload_param_device]
    if plugin.zero_stage != 2 or any(device not in (None, "none") for device in offloads):
        raise ConfigError(
            "of DeepSpeed only ZeRO stage 2 without offloading is known",
            where="accelerate",
            fix="use configs/accelerate/zero2.yaml",
        )
    if any(plugin.deepspeed_config.get(name, {}).get("enabled") for name in ("fp16", "bf16", "torch_autocast")):
        raise ConfigError(
            "DeepSpeed is to compute in another precision than the run", where="accelerate", fix="set run.precision"
        )


__all__ = ["ZeroAdamW", "check_installed", "check_plugin"]
