"""Typed records of the events in a run's log.

Paths are relative to the run folder; steps are indices into the sampler's time grid; null stands for a number
that was not finite or is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _bounded(value: float | None) -> float | None:
    """Take what cannot be drawn (overflow in the log) for a missing number."""
    return value if value is not None and abs(value) <= 1e300 else None


Number = Annotated[float | None, AfterValidator(_bounded)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Step = Annotated[int, Field(ge=0, le=9999)]


class _Event(BaseModel):
    """Fields that a newer version adds are ignored; a known field of the wrong type is an error."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=True)
    _per_step: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _lengths(self) -> _Event:
        for name in self._per_step:
            values = getattr(self, name)
            if values and len(values) != len(self.steps):  # type: ignore[attr-defined]
                raise ValueError(f"{name} has {len(values)} values for {len(self.steps)} steps")  # type: ignore[attr-defined]
        return self


class RunStart(_Event):
    """The head of a run. model, algorithm and reward are words for the title, else taken from the config."""

    time: str | float | None = None
    version: str = ""
    run_name: str = ""
    model: str = ""
    algorithm: str = ""
    reward: str = ""
    config: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    num_parameters: Count | None = None
    trainable_parameters: Count | None = None
    resumed_from: Count | None = None


class Credit(_Event):
    """Credit schedule of the trained steps, in force from after `iteration` on; every list [S].

    A measured schedule adds the measurement that led to it: signal and noise of the measured steps.
    """

    iteration: Count = 0
    steps: list[Step]
    t: list[Number] = []
    dt: list[Number] = []
    std: list[Number] = []
    native: list[Number]
    target: list[Number]
    num_steps: Count | None = None
    measured: list[Step] = []
    signal: list[Number] = []
    noise: list[Number] = []
    _per_step = ("t", "dt", "std", "native", "target")


class Iteration(_Event):
    """One training iteration; the per-step lists are [S] over the steps trained in it."""

    iteration: Count
    reward_mean: Number = None
    reward_std: Number = None
    rewards: dict[str, Number] = {}
    invalid: Count = 0
    zero_std_groups: Count = 0
    skipped: Count = 0
    clip_fraction: Number = None
    clip_fraction_low: Number = None
    clip_fraction_high: Number = None
    steps: list[Step] = []
    clip_fraction_per_step: list[Number] = []
    log_ratio_std_per_step: list[Number] = []
    log_ratio_quantiles_per_step: dict[str, list[Number]] = {}
    approx_kl: Number = None
    kl_ref: Number = None
    ratio_error: Number = None
    loss: Number = None
    grad_norm: Number = None
    learning_rate: Number = None
    pictures_per_second: Number = None
    seconds: dict[str, Number] = {}
    samples: Count | None = None
    _per_step = ("clip_fraction_per_step", "log_ratio_std_per_step")


class Evaluation(_Event):
    """Reward on the fixed evaluation prompts and noises; paths are relative to the run folder."""

    iteration: Count
    reward_mean: Number = None
    reward_std: Number = None
    rewards: dict[str, Number] = {}
    held_out: dict[str, Number] = {}
    held_out_per_prompt: dict[str, list[Number]] = {}
    monitors: dict[str, Number] = {}
    monitors_per_prompt: dict[str, list[Number]] = {}
    diversity_features: str = ""
    diversity_among: str = ""
    prompts: list[str] = []
    values: list[Number] = []
    sheet: str | None = None
    pictures: list[str] = []


class GradientShare(_Event):
    """Measured gradient norm per step and its share of the sum over steps; every list [S].

    signal and variance are absent where the pictures measured are all of one prompt.
    """

    iteration: Count
    steps: list[Step]
    norm: list[Number] = []
    share: list[Number]
    signal: list[Number] = []
    variance: list[Number] = []
    native_share: list[Number] = []
    target_share: list[Number] = []
    _per_step = ("norm", "share", "signal", "variance", "native_share", "target_share")


class Checkpoint(_Event):
    """A checkpoint that was completed."""

    iteration: Count
    path: str


class RunWarning(_Event):
    """Something the user should know; `iteration` is how many were done."""

    message: str
    iteration: Count | None = None


class RunEnd(_Event):
    """The foot of a run that ended by itself."""

    time: str | float | None = None
    iterations: Count | None = None
    reason: str = ""
    seconds: Number = None


@dataclass
class RunLog:
    """Everything in a log. Lists are sorted by iteration and hold each iteration once."""

    run_start: RunStart | None = None
    credits: list[Credit] = field(default_factory=list)
    iterations: list[Iteration] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    gradient_share: list[GradientShare] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    run_warnings: list[RunWarning] = field(default_factory=list)
    end: RunEnd | None = None

    @property
    def credit(self) -> Credit | None:
        """The last schedule in force."""
        return self.credits[-1] if self.credits else None

    @property
    def warnings(self) -> list[str]:
        """The messages of all warnings."""
        return [warning.message for warning in self.run_warnings]

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in the next event; an unknown type is passed over. Raises ValueError on a wrong field."""
        kind = event.get("type")
        if not isinstance(kind, str):
            raise ValueError('no "type"')
        if kind == "run_start":
            # A resumed run is open again, whatever the process before it wrote last.
            self.run_start, self.end = RunStart.model_validate(event), None
            if self.run_start.resumed_from is not None:
                self._abandon(self.run_start.resumed_from)
        elif kind == "credit":
            _supersede(self.credits, Credit.model_validate(event))
        elif kind == "iteration":
            _supersede(self.iterations, Iteration.model_validate(event))
        elif kind == "evaluation":
            _supersede(self.evaluations, Evaluation.model_validate(event))
        elif kind == "gradient_share":
            _supersede(self.gradient_share, GradientShare.model_validate(event))
        elif kind == "checkpoint":
            _supersede(self.checkpoints, Checkpoint.model_validate(event))
        elif kind == "warning":
            self.run_warnings.append(RunWarning.model_validate(event))
        elif kind == "run_end":
            self.end = RunEnd.model_validate(event)

    def _abandon(self, iteration: int) -> None:
        """Drop what a process wrote after the checkpoint from which the next one goes on.

        A checkpoint is made as the iteration ends, before its evaluation and before the gradient share of the next.
        """
        self.iterations = [event for event in self.iterations if event.iteration <= iteration]
        self.checkpoints = [event for event in self.checkpoints if event.iteration <= iteration]
        self.evaluations = [event for event in self.evaluations if event.iteration < iteration]
        self.gradient_share = [event for event in self.gradient_share if event.iteration < iteration]
        self.credits = [event for event in self.credits if event.iteration <= iteration]
        self.run_warnings = [w for w in self.run_warnings if w.iteration is None or w.iteration <= iteration]


Numbered = TypeVar("Numbered", Credit, Iteration, Evaluation, GradientShare, Checkpoint)


def _supersede(events: list[Numbered], event: Numbered) -> None:
    """Append an event; if its iteration was logged before, a restart abandoned all from there on."""
    while events and events[-1].iteration >= event.iteration:
        events.pop()
    events.append(event)
