"""Implicit Reward Guidance (2509.25774): tuned models as directions away from the model that they were tuned from.

    f~ = f_ref + sum_k lambda_k (f_k - f_ref)

Each net has its own classifier-free guidance before they are mixed. lambda_k is chosen when sampling, without training.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from pcpo.errors import ConfigError, ModelError, RunFolderError
from pcpo.evaluation.iterations import split_source
from pcpo.evaluation.sampling import DEFAULT, Placement, load_run_weights, run_config
from pcpo.models.base import Adapter, Conditioning
from pcpo.models.folders import same_model
from pcpo.trainer.step import Policy
from pcpo.types import Grid


@dataclass
class Guidance:
    """Tuned nets on one loaded base; outside `use`, the adapter is the base.

    weights   lambda_k by name of the net; may be changed at any time
    modules   the nets of full fine-tunings; every other one is a LoRA of that name on the base
    """

    adapter: Adapter
    weights: dict[str, float] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Inside, the adapter predicts with the net of that name; None is the base."""
        adapter, base = self.adapter, self.adapter.unwrapped
        has_lora = name is not None and name not in self.modules
        try:
            if name in self.modules:
                adapter.backbone = self.modules[name]
            elif has_lora:
                base.set_adapter(name)
                base.enable_adapters()
            yield
        finally:
            adapter.backbone = base
            if has_lora:
                base.disable_adapters()

    def mix(self, predict: Callable[[], Tensor]) -> Tensor:
        """f~, from what `predict` returns under each net.

        Summed as (1 - sum lambda) f_ref + sum lambda_k f_k, nets with the factor 0 left out: so lambda 0 is f_ref and
        a single lambda 1 is f_k bit for bit, and neither pays for a net that does not count.
        """
        base: tuple[str | None, float] = (None, 1.0 - math.fsum(self.weights.values()))
        total: Tensor | None = None
        for name, factor in (base, *self.weights.items()):
            if factor == 0:
                continue
            with self.use(name):
                part = factor * predict()
            total = part if total is None else total + part
        assert total is not None  # the factors sum to 1
        return total

    def make_policy(self, adapter: Adapter, grid: Grid, guidance_scale: float) -> Policy:
        """For `pcpo.evaluation.sampling.sample_set`, with this guidance's own adapter."""
        return GuidedPolicy(adapter, grid, guidance_scale, guidance=self)


@dataclass(kw_only=True)
class GuidedPolicy(Policy):
    """The policy whose prediction is f~."""

    guidance: Guidance

    def __call__(self, x: Tensor, i: Tensor, cond: Conditioning, index: Tensor) -> Tensor:
        """f~ [N, ...] at grid steps i [N]; one model call per net whose factor is not 0."""
        timestep = self._timestep(x, i)
        return self.guidance.mix(lambda: self.adapter.predict(x, timestep, cond, index, self.guidance_scale))


def load_guidance(source: str, terms: Sequence[tuple[str, float]], placement: Placement = DEFAULT) -> Guidance:
    """Load a base model once and put the tuned weights of several runs on it.

    source  the base: an embedded name, folder or hub id; a run stands for the model that it was tuned from
    terms   (run folder or RUN@ITERATION, lambda) pairs; nets are named by their place, net_0, net_1, ...

    LoRAs share the base; a full fine-tuning is loaded as a network of its own. Precision, resolution and T5 length are
    the source's where it is a run, else the first term's. Raises RunFolderError when a term is no run or has no
    weights, ModelError when it was tuned from another model, ConfigError when a lambda is not finite.
    """
    own = run_config(split_source(source)[0])
    base = own.model.path if own else source
    configs = []
    for run, weight in terms:
        if not math.isfinite(weight):
            raise ConfigError(f"is weighted by {weight}", where=f"adapter {run}", fix="give a finite number")
        config = run_config(split_source(run)[0])
        if config is None:
            raise RunFolderError("is not a run folder", where=f"adapter {run}", fix="write RUN=WEIGHT")
        if not same_model(config.model.path, base):
            raise ModelError(
                f"was tuned from {config.model.path}, not from {base}",
                where=f"adapter {run}",
                fix="combine runs of one base model",
            )
        configs.append(config)
    guidance = Guidance(replace(placement, runs=tuple(filter(None, (own, *configs)))).load(base))
    named = [(f"net_{place}", run, config) for place, ((run, _), config) in enumerate(zip(terms, configs, strict=True))]
    # full ones first: they start from a copy of the bare base
    for name, run, config in sorted(named, key=lambda entry: entry[2].model.tune != "full"):
        _load_net(guidance, name, run, config.model.tune == "full")
    guidance.weights = {name: weight for (name, _, _), (_, weight) in zip(named, terms, strict=True)}
    return guidance


def _load_net(guidance: Guidance, name: str, source: str, full: bool) -> None:
    adapter, base = guidance.adapter, guidance.adapter.unwrapped
    folder, iteration = split_source(source)
    config = run_config(folder)
    assert config is not None  # checked by load_guidance
    if full:
        adapter.replace_backbone(copy.deepcopy(base))
    load_run_weights(adapter, Path(folder), config, iteration, name)
    if full:
        guidance.modules[name] = adapter.unwrapped
        adapter.replace_backbone(base)
    else:
        base.disable_adapters()


def parse_term(text: str) -> tuple[str, float]:
    """`RUN=WEIGHT` as a pair. Raises ConfigError."""
    run, equals, weight = text.rpartition("=")
    try:
        if not (equals and run):
            raise ValueError("no '='")
        return run, float(weight)
    except ValueError:
        raise ConfigError(
            "is not RUN=WEIGHT", where=f"--adapter {text}", fix="for instance --adapter runs/mine=0.7"
        ) from None


__all__ = ["Guidance", "GuidedPolicy", "load_guidance", "parse_term"]
