"""Which settings to change, in which order, for a run to fit, and what each one saves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pcpo.errors import PCPOError
from pcpo.plan.memory import MemoryPlan, estimate, model_of
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import apply_overrides, validate

# A part of the device's memory that no plan should count on: fragmentation, other programs, the driver.
MARGIN = 0.08
WORTH = 0.01  # a change that saves less of the peak than this is not named


@dataclass(frozen=True)
class Advice:
    """One change: `setting` as --set takes it, what it costs in words, bytes saved, and the peak after it."""

    setting: str
    cost: str
    saves: int
    peak: int


def fits(plan: MemoryPlan, memory: int) -> bool:
    """Whether the peak leaves the margin of a device of so many bytes."""
    return plan.peak <= (1 - MARGIN) * memory


def advise(config: Config, prompts: int, memory: int) -> list[Advice]:
    """Changes to make one after the other until the run fits; the last one may still not make it fit.

    Those that leave the results as they are come first, then those that round, then those that change what is trained.
    """
    now = estimate(model_of(config), prompts)
    found: list[Advice] = []
    while not fits(now, memory):
        for setting, cost in _changes(config):
            try:
                changed = validate(apply_overrides(config.model_dump(mode="json"), [setting]))
                plan = estimate(model_of(changed), prompts)
            except PCPOError:  # this model has no such switch
                continue
            if now.peak - plan.peak > WORTH * now.peak:
                found.append(Advice(setting, cost, now.peak - plan.peak, plan.peak))
                config, now = changed, plan
                break
        else:
            return found
    return found


def _changes(config: Config) -> Iterator[tuple[str, str]]:
    """What may still be changed, the least harmful first."""
    model, run, batch = config.model, config.run, config.batch
    rollout = batch.rollout or config.pictures
    micro = batch.micro or rollout
    if run.offload != "drop":
        yield "run.offload=drop", "the same pictures; the trainer cannot encode new prompts"
    if not run.vae_slicing:
        yield "run.vae_slicing=true", "the same pictures"
    if model.gradient_checkpointing is not True:
        yield "model.gradient_checkpointing=true", "the same gradients, updates a third slower"
    if not config.train.replay:
        once = config.train.updates * config.train.epochs == 1
        yield "train.replay=true", "the same gradients" + ("" if once else ", one more model call per pair")
    if run.precision == "fp32":
        yield "run.precision=bf16", "frozen weights and computation are rounded"
    smaller = _half(micro, 1)
    if smaller < micro:
        yield f"batch.micro={smaller}", "the same gradients up to rounding, slower"
    smaller = _half(rollout, config.pictures)
    if smaller < rollout:
        yield f"batch.rollout={smaller}", "the same pictures up to rounding, slower"
    if config.evaluation.credit_probe:
        yield "evaluation.credit_probe=0", "no measured credit in the report"
    if not run.vae_tiling:
        yield "run.vae_tiling=true", "faint seams in large pictures"
    if model.tune == "full":
        if config.optim.name == "adamw":
            yield "optim.name=adamw_8bit", "moments are rounded; needs bitsandbytes"
        yield "model.tune=lora", "a LoRA is trained instead of all weights; learning rates are others"
    elif model.lora.rank > 4:
        yield f"model.lora.rank={max(4, model.lora.rank // 4)}", "a smaller LoRA"
    if model.resolution is not None and model.resolution > 256:
        yield f"model.resolution={model.resolution // 128 * 64}", "smaller pictures"


def _half(size: int, whole: int) -> int:
    """The largest size up to half of `size` that divides `whole`, 1 at least."""
    return next((n for n in range(size // 2, 0, -1) if whole % n == 0 or whole == 1), size)


__all__ = ["Advice", "MARGIN", "advise", "fits"]
