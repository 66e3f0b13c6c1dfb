"""The rule of the early warning: which curves beside the reward left their limits, and what to say about it.

A monitor is compared with its own start, prompt by prompt: prompts and noises are the same at every evaluation, so what
prompts differ in from each other cancels. It counts as having left its limit when all of this holds:

    size     the mean change over prompts is at least the limit (`Rule`), in the direction that is bad,
    lasting  at the last evaluation and at the one before, so one odd evaluation is no alarm,
    sure     at the last, the 95 % t interval of the mean change over prompts leaves out 0.

Size alone would fire on noise where few prompts are evaluated; the interval alone on changes too small to see. Together
they fire in about 1 of 100 runs whose prompts only wander, each by a quarter of its value; real runs wander less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, stdev

from pcpo.observe.numbers import number, percent, relative_change
from pcpo.observe.records import Evaluation, RunLog
from pcpo.observe.series import mean
from pcpo.study.stats import student_quantile

EVALUATIONS = 3
KL_ITERATIONS = 12
KL_FACTOR = 10.0


@dataclass(frozen=True)
class Rule:
    """Limit of a change: `share` of the start, or `spread` standard deviations of the prompts there, or `fixed`.

    direction  -1: falling is bad, 1: rising is, 0: both are worth a look
    alarm      whether leaving the limit is a warning, or a note: pixels may change because the reward asks for it
    """

    direction: int
    share: float = 0.0
    spread: float = 0.0
    fixed: float = 0.0
    alarm: bool = True

    def limit(self, start: Sequence[float]) -> float:
        """The change that counts, from the prompts' values at the start; 0: there is no scale to judge by."""
        level, deviation = abs(mean(start) or 0.0), stdev(start) if len(start) > 1 else 0.0
        return self.share * level + self.spread * deviation + self.fixed


# A fifth less of the distances is seen without counting. Rewards have a zero and a unit of their own, so only the
# spread among prompts gives them a scale; half of it is the usual "medium" effect. A pixel monitor has to leave the
# range in which the prompts themselves lay.
REWARD = Rule(-1, spread=0.5)
DIVERSITY = Rule(-1, share=0.2)
HELD_OUT = Rule(-1, spread=0.5)
DUPLICATES = Rule(1, fixed=0.1)
PIXELS = Rule(0, spread=1.0, alarm=False)


@dataclass(frozen=True)
class Sign:
    """One monitor over the evaluations, judged.

    points     (iteration, mean) of every evaluation that has it
    change     mean change over prompts from the first to the last, with its 95 % interval; None: not known
    limit      the change that counts; None: not judged
    left       whether the limit was left, lastingly and surely
    """

    name: str
    rule: Rule
    points: list[tuple[int, float]]
    change: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    left: bool = False

    @property
    def words(self) -> str:
        """The change in words: fell by 34 % (0.59 -> 0.39)."""
        (_, first), (_, last) = self.points[0], self.points[-1]
        share = relative_change(first, last)
        size = f" by {percent(abs(share))}" if share is not None else ""
        moved = "rose" if last > first else "fell" if last < first else "stayed"
        return f"{moved}{size if last != first else ''} ({number(first, 3)} \u2192 {number(last, 3)})"


def judge(name: str, rule: Rule, rows: Sequence[tuple[int, Sequence[float | None]]], widen: float = 1.0) -> Sign:
    """Judge a monitor by its values per prompt at every evaluation: rows of (iteration, [P]).

    `widen` multiplies the interval: 2 for the mean distance of each picture to all others, where every distance is
    counted at both of its ends (the standard error of a U-statistic of order 2).
    """
    points = [(at, value) for at, values in rows if (value := mean(values)) is not None]
    if len(rows) < EVALUATIONS or not points:
        return Sign(name, rule, points)
    start, changes = rows[0][1], [_changes(rows[0][1], values) for _, values in rows[-2:]]
    limit = rule.limit([value for value in start if value is not None])
    before, now = (mean(change) for change in changes)
    if limit == 0 or len(changes[-1]) < 2 or now is None or before is None:
        return Sign(name, rule, points, change=now)
    spare = widen * student_quantile(len(changes[-1]) - 1) * stdev(changes[-1]) / math.sqrt(len(changes[-1]))
    low, high = now - spare, now + spare
    lasting = all(_bad(change, rule.direction, limit) for change in (before, now)) and before * now > 0
    return Sign(name, rule, points, now, low, high, limit, lasting and not low <= 0 <= high)


def _changes(first: Sequence[float | None], last: Sequence[float | None]) -> list[float]:
    """Changes of the prompts that have a value at both; none where the prompts differ in number."""
    if len(first) != len(last):
        return []
    return [b - a for a, b in zip(first, last, strict=True) if a is not None and b is not None]


def _bad(change: float, direction: int, limit: float) -> bool:
    return abs(change) >= limit and (direction == 0 or change * direction > 0)


@dataclass(frozen=True)
class Signs:
    """Everything that is watched: the reward itself, monitors in the order of their weight, and KL.

    kl_growth  last over first quarter of the KL to the sampling policy; None: not judged
    """

    reward: Sign
    diversity: Sign | None
    held_out: list[Sign]
    pixels: list[Sign]
    kl_growth: float | None

    @property
    def monitors(self) -> list[Sign]:
        """All but the reward."""
        return [*([self.diversity] if self.diversity else []), *self.held_out, *self.pixels]

    @property
    def judged(self) -> bool:
        """Whether there is a monitor that the rule could be applied to."""
        return any(sign.limit is not None for sign in self.monitors)

    @property
    def kl_runs_away(self) -> bool:
        """Whether an update now moves the policy 10 times as far as in the beginning."""
        return self.kl_growth is not None and self.kl_growth >= KL_FACTOR

    def alarms(self) -> list[str]:
        """Sentences about what left its limit and should not have."""
        said = [f"{sign.name} {sign.words}" for sign in self.monitors if sign.left and sign.rule.alarm]
        if said:
            reward = f" while the reward {self.reward.words}" if self.reward.points else ""
            said = [f"{', '.join(said)}{reward}: look at the pictures."]
        if self.reward.left:
            said.append(f"The evaluation reward itself {self.reward.words}.")
        if self.kl_growth is not None and self.kl_runs_away:
            said.append(
                f"The KL to the sampling policy grew {self.kl_growth:.0f} times: each update moves the policy "
                "much further than in the beginning."
            )
        return [sentence[0].upper() + sentence[1:] for sentence in said]

    def notes(self) -> list[str]:
        """Sentences about pixels that changed more than prompts differed from each other before training."""
        changed = [f"{sign.name} {sign.words}" for sign in self.monitors if sign.left and not sign.rule.alarm]
        if not changed:
            return []
        said = f"{', '.join(changed)}. Look at the pictures if the reward is not about that."
        return [said[0].upper() + said[1:]]


LABELS = {
    "near_duplicates": "near-duplicates",
    "edge_density": "edge density",
    "colour_entropy": "colour entropy",
    "clipped": "clipped pixels",
}


def signs(log: RunLog) -> Signs:
    """Judge a log; evaluations without a monitor are passed over for that monitor."""
    events = log.evaluations
    names = list(dict.fromkeys(name for event in events for name in event.monitors_per_prompt))
    monitors = {name: [(event.iteration, event.monitors_per_prompt.get(name)) for event in events] for name in names}
    among = next((event.diversity_among for event in reversed(events) if event.diversity_among), "prompt")
    diversity = monitors.pop("diversity", None)
    kept_out = list(dict.fromkeys(name for event in events for name in event.held_out))
    return Signs(
        reward=judge("reward", REWARD, [(event.iteration, _rewards(event)) for event in events]),
        diversity=judge("diversity", DIVERSITY, _there(diversity), 2.0 if among == "set" else 1.0)
        if diversity
        else None,
        held_out=[
            judge(f"held-out {name}", HELD_OUT, _there([(e.iteration, _held_out(e, name)) for e in events]))
            for name in kept_out
        ],
        pixels=[
            judge(LABELS.get(name, name), DUPLICATES if name == "near_duplicates" else PIXELS, _there(rows))
            for name, rows in monitors.items()
        ],
        kl_growth=kl_growth([row.approx_kl for row in log.iterations]),
    )


def _there(rows: Sequence[tuple[int, list[float | None] | None]]) -> list[tuple[int, list[float | None]]]:
    return [(at, values) for at, values in rows if values]


def _held_out(event: Evaluation, name: str) -> list[float | None] | None:
    """Per prompt, or the mean alone, which can be drawn and not judged."""
    alone = [event.held_out[name]] if name in event.held_out else None
    return event.held_out_per_prompt.get(name) or alone


def _rewards(event: Evaluation) -> list[float | None]:
    """The reward's mean per prompt, as far as the event tells which pictures belong together; else per picture."""
    count = max(map(len, event.monitors_per_prompt.values()), default=0)
    values = event.values or [event.reward_mean]
    if count == 0 or len(values) % count:
        return list(values)
    each = len(values) // count
    return [mean(values[start : start + each]) for start in range(0, len(values), each)]


def kl_growth(values: Sequence[float | None]) -> float | None:
    """Median KL of the last quarter of the iterations over that of the first; None below 12, or from 0.

    Medians of quarters, because single iterations vary by a factor of a few; 10, because that is beyond it.
    """
    present = [value for value in values if value is not None]
    quarter = len(present) // 4
    if len(present) < KL_ITERATIONS or median(present[:quarter]) <= 0:
        return None
    return median(present[-quarter:]) / median(present[:quarter])


__all__ = [
    "DIVERSITY",
    "DUPLICATES",
    "HELD_OUT",
    "PIXELS",
    "REWARD",
    "Rule",
    "Sign",
    "Signs",
    "judge",
    "kl_growth",
    "signs",
]
