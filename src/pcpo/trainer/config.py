"""The configuration of a run: one strict model per part, every field documented, senseless combinations refused.

Field descriptions are the reference: the CLI and the docs print them. Batch arithmetic: an iteration samples
B = batch.prompts * batch.group_size pictures and makes `train.epochs * train.updates` optimiser steps.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pcpo.credit import check_credit
from pcpo.errors import ConfigError
from pcpo.samplers import SAMPLERS, make_sampler


class Section(BaseModel):
    """Base of all parts: unknown keys are errors, values are not changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class LoraSettings(Section):
    """Low-rank adapter on the backbone (2106.09685)."""

    rank: int = Field(16, ge=1, description="rank of the update matrices")
    alpha: float | None = Field(None, gt=0, description="scale numerator; null: 2 * rank")
    targets: list[str] | None = Field(None, description="module names; null: the attention projections")
    fold: bool = Field(
        True,
        description="train in fp32 by one product with W + s B A a layer: faster; false: peft's path, other rounding",
    )


class ModelSettings(Section):
    """Which pipeline is tuned, and which of its parameters."""

    path: str = Field("emoji-sd", description="embedded model name, local pipeline folder, or hub id")
    tune: Literal["lora", "full"] = Field("lora", description="train a LoRA, or all backbone weights")
    lora: LoraSettings = LoraSettings()
    resolution: int | None = Field(None, ge=8, description="picture side in pixels; null: the model's own")
    max_sequence_length: int | None = Field(
        None,
        ge=1,
        description="text tokens of models that take longer prompts than CLIP's; null: the pipeline's default",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        False,
        description="recompute activations in the backward pass: less memory, the same gradients, slower; auto: from "
        "when an update runs out of memory that smaller calls do not save",
    )
    attention_backend: str | None = Field(
        None, description="diffusers' name of an attention backend, e.g. flash or _native_math; null: its choice"
    )


class RewardPart(Section):
    """One reward: a built-in name, `module:function`, or `file.py:function`."""

    name: str = Field(description="built-in name, `module:function`, or `file.py:function`")
    weight: float = Field(1.0, description="factor in the sum")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the reward")


def _as_parts(value: Any) -> Any:
    """Accept `reward: name` and lists that mix names and mappings."""
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list):
        return [{"name": part} if isinstance(part, str) else part for part in value]
    return value


RewardParts = Annotated[list[RewardPart], BeforeValidator(_as_parts)]


class SamplerSettings(Section):
    """The stochastic sampler that makes the pictures (equations: docs/explanation/equations.md section 3)."""

    name: Literal["ddim", "flow_sde", "dance_sde", "cps", "precise"] = Field("ddim", description="step rule")
    steps: int = Field(20, ge=1, le=1000, description="number of denoising steps T")
    eta: float | None = Field(
        None,
        ge=0,
        description="noise: eta of ddim, dance_sde, precise; a of flow_sde, cps; null: the usual one",
    )
    guidance_scale: float = Field(5.0, ge=0, description="classifier-free guidance; <= 1: off")
    grid: Literal["scheduler", "ideal", "log_snr"] = Field(
        "scheduler", description="time grid: the pipeline's; ideal for flow; uniform in log-SNR for diffusion"
    )
    shift: float | None = Field(None, gt=0, description="time shift of an ideal flow grid; null: the scheduler's")
    stochastic: Literal["all", "trained"] = Field(
        "all", description="which steps draw noise: all, or only those trained (deterministic elsewhere)"
    )


class CreditSettings(Section):
    """How credit is shared among the steps: the heart of PCPO (2509.25774)."""

    schedule: Literal["native", "uniform", "proportional", "noise_aware", "guard", "guard_dt", "adaptive"] = Field(
        "uniform", description="target weight of each step; adaptive: measured, from PCPO's target on"
    )
    apply: Literal["matching", "ratio", "variance", "lambda", "loss"] = Field(
        "matching", description="where the target acts"
    )
    every: int = Field(1, ge=1, description="adaptive: iterations between measurements")
    smoothing: float = Field(0.95, ge=0, lt=1, description="adaptive: decay of the running means")
    floor: float = Field(0.1, gt=0, le=1, description="adaptive: least weight of a step over the mean weight")


class ObjectiveSettings(Section):
    """The surrogate that is minimised for every (picture, step) pair."""

    name: Literal["ppo_clip", "hinge", "log_hinge", "matching", "reinforce"] = Field(
        "matching", description="surrogate loss"
    )
    clip_range: float = Field(1e-4, gt=0, lt=1, description="xi; with reduce=mean, 1e-6 to 1e-3 is usual")
    reduce: Literal["mean", "sum"] = Field("mean", description="reduction of log-probs over latent dimensions")
    quadratic: bool = Field(True, description="keep the quadratic term of the matching form")


class AdvantageSettings(Section):
    """How rewards become advantages."""

    name: Literal["grpo", "global", "running"] = Field(
        "grpo", description="over the std of the group, of the batch, or of the prompt's last rewards"
    )
    clip: float = Field(5.0, gt=0, description="advantages are clipped to +- this")
    buffer: int = Field(32, ge=2, description="running: rewards remembered per prompt")
    min_count: int = Field(
        16,
        ge=1,
        description="running: below this many rewards of a prompt, the batch's mean and std are used",
    )


class PenaltySettings(Section):
    """KL to the model before tuning."""

    form: Literal["none", "exact", "rate"] = Field("none", description="exact step KL, or Flow-GRPO's rate form")
    beta: float = Field(0.0, ge=0, description="its weight")


class BatchSettings(Section):
    """Pictures of an iteration."""

    prompts: int = Field(6, ge=1, description="prompts per iteration, P")
    group_size: int = Field(8, ge=1, description="pictures per prompt, G")
    rollout: int | None = Field(None, ge=1, description="pictures per model call when sampling; null: all")
    micro: int | None = Field(
        None, ge=1, description="(picture, step) pairs per model call when training; null: as rollout"
    )
    same_noise: bool = Field(False, description="one initial noise for the whole group")


class TrainSettings(Section):
    """The update."""

    iterations: int = Field(30, ge=1, description="rollout-and-update rounds")
    updates: int = Field(1, ge=1, description="optimiser steps per pass over a rollout")
    epochs: int = Field(1, ge=1, description="passes over a rollout")
    select: Literal["all", "first", "random", "window", "credit"] = Field(
        "all",
        description="which stochastic steps are trained: all, the first ones, a random set, a random window, or drawn "
        "in proportion to their credit and counted by its inverse",
    )
    fraction: float = Field(1.0, gt=0, le=1, description="share of the steps, for all choices but `all`")
    within: tuple[float, float] | None = Field(
        None,
        description="only steps within these shares of the sampling, from 0 (pure noise) to 1 (the picture): [0, 0.5] "
        "is the first half; null: all",
    )
    replay: bool = Field(
        False,
        description="compute old predictions again in the update instead of storing them: a third less trajectory; "
        "free with one update per rollout, else one more model call per pair",
    )
    filter: Literal["none", "zero_std"] = Field("none", description="zero_std: skip groups with equal rewards")
    max_invalid: float = Field(
        0.05, ge=0, le=1, description="stop when the reward leaves out more than this share of the pictures"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="an update that a NaN or infinite value would enter: stop the run, or leave the update out (three "
        "in a row stop it)",
    )
    invalid_window: int = Field(20, ge=1, description="iterations over which that share is taken")


class OptimSettings(Section):
    """AdamW and what surrounds it."""

    name: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit: moments of 8 bits, by bitsandbytes (extra `bitsandbytes`)"
    )
    learning_rate: float = Field(3e-4, gt=0, description="constant over the run")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of AdamW's running moments")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled weight decay")
    epsilon: float = Field(1e-8, gt=0, description="added to AdamW's denominator")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm clip")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="EMA of the trained weights; null: none")


class EvaluationSettings(Section):
    """Fixed prompts and noises, before, during and after."""

    every: int = Field(10, ge=1, description="iterations between evaluations")
    prompts: str | list[str] | None = Field(
        None, description="null: the prompts of `held_out`, or else the first training prompts"
    )
    rewards: RewardParts = Field([], description="held-out rewards: measured at every evaluation, never trained on")
    num_prompts: int = Field(8, ge=1, description="at most this many prompts")
    per_prompt: int = Field(2, ge=1, description="pictures per prompt")
    steps: int | None = Field(None, ge=1, description="sampling steps; null: as in training")
    guidance_scale: float | None = Field(None, ge=0, description="null: as in training")
    deterministic: bool = Field(True, description="sample with std 0, as the pipeline does; false: as in training")
    save: bool = Field(False, description="keep the tuned weights of every evaluation, in evaluations/NNNNNN/")
    credit_probe: int = Field(8, ge=0, description="pictures whose per-step gradient is measured; 0: none")


class RunSettings(Section):
    """Where the run lives and how it is executed."""

    output: str | None = Field(None, description="run folder; null: runs/NAME-SEED")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of prompts, noises, LoRA and the choice of steps")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: the accelerator if there is one")
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="of frozen weights and of the computation; LoRA, tuned weights and latents stay float32"
    )
    offload: Literal["none", "cpu", "drop"] = Field(
        "none",
        description="encode all prompts first; keep idle text encoders and VAE on the CPU, or (drop) free the former",
    )
    vae_slicing: bool = Field(False, description="decode one picture at a time: less memory")
    vae_tiling: bool = Field(False, description="decode large pictures in tiles: less memory, faint seams")
    embedding_cache: str | None = Field(None, description="folder for encoded prompts, shared by runs; null: in memory")
    compile: bool = Field(
        False, description="torch.compile the backbone, for sampling and training alike: the first iteration is slow"
    )
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field("none", description="also log scalars there")
    threads: int | None = Field(None, ge=1, description="CPU threads; null: torch's choice")
    checkpoint_every: int = Field(10, ge=1, description="iterations between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept")


class Config(Section):
    """Everything about a run. `name` labels it in reports."""

    name: str = Field("pcpo", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="label in reports and folders")
    model: ModelSettings = ModelSettings()
    prompts: str | list[str] = Field("common50", description="embedded set, .txt or .jsonl file, or a list")
    held_out: float = Field(
        0.0, ge=0, lt=1, description="share of the prompts kept from training for evaluation, by a hash of their text"
    )
    reward: RewardParts = Field([RewardPart(name="colorfulness")], description="what is trained on")
    reward_mix: Literal["weighted_sum", "normalised", "advantages"] = Field(
        "weighted_sum",
        description="what the weights of several rewards sum: raw values, values over their group's mean and std, "
        "or advantages",
    )
    sampler: SamplerSettings = SamplerSettings()
    credit: CreditSettings = CreditSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    advantage: AdvantageSettings = AdvantageSettings()
    kl: PenaltySettings = PenaltySettings()
    batch: BatchSettings = BatchSettings()
    train: TrainSettings = TrainSettings()
    optim: OptimSettings = OptimSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _makes_sense(self) -> Config:
        for problem in _contradictions(self):
            raise ValueError(problem)
        return self

    @property
    def pictures(self) -> int:
        """B, pictures per iteration."""
        return self.batch.prompts * self.batch.group_size


def sampler_parameters(config: Config) -> dict[str, float | str]:
    """Keyword arguments of `make_sampler` for a configuration."""
    parameter = SAMPLERS[config.sampler.name].parameter
    given: dict[str, float | str] = {}
    if config.sampler.eta is not None and parameter is not None:
        given[parameter] = config.sampler.eta
    if config.credit.apply == "variance":
        given["variance"] = "pcpo"
    return given


def _contradictions(config: Config) -> list[str]:
    """Combinations that validate field by field but make no sense together, each with its reason."""
    found = []
    batch, train, credit, objective = config.batch, config.train, config.credit, config.objective
    family = SAMPLERS[config.sampler.name].family
    if not config.reward:
        found.append("reward: at least one reward is needed")
    if config.held_out and config.evaluation.prompts is not None:
        found.append("held_out keeps prompts for evaluation, and evaluation.prompts names others: drop one of them")
    if config.reward_mix == "normalised" and batch.group_size == 1:
        found.append(
            "reward_mix normalised: a group of one has no spread; use another mix, or batch.group_size 2 or more"
        )
    if batch.group_size == 1 and config.advantage.name != "running":
        found.append(
            f"batch.group_size 1 with advantage.name {config.advantage.name}: a group of one always has advantage 0; "
            "use 2 or more, or advantage.name=running"
        )
    if config.advantage.name == "running" and config.advantage.min_count > config.advantage.buffer:
        found.append(
            f"advantage.min_count {config.advantage.min_count} is above advantage.buffer {config.advantage.buffer}, "
            "so it would never be reached"
        )
    if config.pictures % train.updates:
        found.append(
            f"train.updates {train.updates} does not divide the {config.pictures} pictures of an iteration "
            "(batch.prompts * batch.group_size)"
        )
    if batch.rollout is not None and config.pictures % batch.rollout:
        found.append(f"batch.rollout {batch.rollout} does not divide the {config.pictures} pictures of an iteration")
    if config.sampler.eta == 0:
        found.append("sampler.eta 0: a deterministic sampler has no log-probability to train on; use a value above 0")
    try:
        check_credit(credit.schedule, credit.apply, family)
        make_sampler(config.sampler.name, **sampler_parameters(config))
    except ConfigError as error:
        found.append(str(error))
    found += _adaptive_contradictions(config)
    if credit.apply == "matching" and credit.schedule != "native" and objective.name != "matching":
        found.append(
            f"credit.apply matching replaces the log-ratio, so objective.name must be matching, not {objective.name}; "
            "to reweight a true log-ratio use credit.apply=ratio"
        )
    if not objective.quadratic and objective.name != "matching":
        found.append("objective.quadratic=false is for objective.name=matching: others need the exact log-ratio")
    if objective.name == "reinforce" and train.updates * train.epochs > 1:
        found.append(
            "objective.name reinforce has no importance ratio, so it is on-policy for one update only; "
            "set train.updates=1 and train.epochs=1, or another objective"
        )
    if config.kl.beta > 0 and config.kl.form == "none":
        found.append("kl.beta is set but kl.form is none; choose exact or rate")
    if train.select == "all" and train.fraction < 1:
        found.append("train.fraction below 1 needs train.select=first, random, window or credit")
    if train.select == "credit" and (credit.schedule == "adaptive" or config.kl.form != "none"):
        found.append(
            "train.select credit weighs the loss of a step by the inverse of a fixed probability, which neither "
            "credit.schedule=adaptive nor a KL penalty goes with; use select=random"
        )
    if config.sampler.stochastic == "trained" and train.select == "all" and train.within is None:
        found.append("sampler.stochastic=trained needs train.select=first, random, window or credit, or train.within")
    if train.within is not None:
        if train.select == "first":
            found.append("train.within goes with train.select=all, random, window or credit: first is one by itself")
        (low, high), steps = train.within, config.sampler.steps
        if not 0 <= low < high <= 1:
            found.append(f"train.within [{low:g}, {high:g}] must be two ascending numbers between 0 and 1")
        elif round(steps * low) == round(steps * high):
            found.append(f"train.within [{low:g}, {high:g}] of {steps} steps is no step: nothing to train")
    if train.select != "all" and int(config.sampler.steps * train.fraction) == 0:
        found.append(f"train.fraction {train.fraction} of {config.sampler.steps} steps is no step: nothing to train")
    wrong_grid = "ideal" if family == "diffusion" else "log_snr"
    if config.sampler.grid == wrong_grid:
        found.append(f"sampler.grid {wrong_grid} is not for {family} models, which {config.sampler.name} samples")
    if config.sampler.shift is not None and (family == "diffusion" or config.sampler.grid != "ideal"):
        found.append("sampler.shift applies to an ideal flow grid; set sampler.grid=ideal, or drop it")
    return found


def _adaptive_contradictions(config: Config) -> list[str]:
    """Those of the measured credit schedule."""
    credit = config.credit
    if credit.schedule != "adaptive":
        return [
            f"credit.{name} is for credit.schedule=adaptive; {credit.schedule} is not measured"
            for name in ("every", "smoothing", "floor")
            if getattr(credit, name) != CreditSettings.model_fields[name].default
        ]
    found = []
    if config.batch.prompts < 2:
        found.append(
            "batch.prompts 1 with credit.schedule adaptive: the noise is measured between two halves of the prompts; "
            "use 2 or more"
        )
    if config.kl.form != "none":
        found.append(
            "credit.schedule adaptive measures the gradient of the reward, which a KL penalty would mix with its own; "
            "set kl.form=none, or another schedule"
        )
    return found
