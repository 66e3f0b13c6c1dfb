"""The top of the report: title, the run in one sentence, a handful of figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pcpo.observe.console import duration
from pcpo.observe.early import verdict
from pcpo.observe.markup import Safe, element
from pcpo.observe.numbers import number, percent, relative_change
from pcpo.observe.records import Iteration, RunLog
from pcpo.observe.series import mean

ALGORITHM = (("credit", "schedule"), ("objective", "name"), ("sampler", "name"))


def title_words(log: RunLog) -> dict[str, str]:
    """Model, algorithm and reward in words, from run_start or else from the resolved config."""
    start = log.run_start
    if start is None:
        return {}
    config = start.config
    words = {
        "model": start.model or _at(config, "model", "path"),
        "algorithm": start.algorithm or _algorithm(config),
        "reward": start.reward or _reward(config.get("reward")),
    }
    return {key: value for key, value in words.items() if value}


def _at(config: Mapping[str, Any], *keys: str) -> str:
    """The text at nested keys; empty when there is none."""
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def _algorithm(config: Mapping[str, Any]) -> str:
    """The parts that make the algorithm: proportional credit, matching objective, flow_sde sampler."""
    named = {part: _at(config, part, key) for part, key in ALGORITHM}
    return ", ".join(f"{value} {part}" for part, value in named.items() if value)


def _reward(parts: Any) -> str:
    """Sum of rewards with their weights: colorfulness + 0.5 x clip."""
    named = []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, Mapping) and isinstance(part.get("name"), str):
            weight = part.get("weight", 1)
            plain = not isinstance(weight, (int, float)) or weight == 1
            named.append(part["name"] if plain else f"{number(weight, 3)} \u00d7 {part['name']}")
    return " + ".join(named)


def head(log: RunLog) -> Safe:
    """Title, headline figure and the tiles under it."""
    name = log.run_start.run_name if log.run_start and log.run_start.run_name else "unnamed run"
    facts = [element("li", element("b", key), value) for key, value in title_words(log).items()]
    return element(
        "header",
        element("p", "PCPO run report", class_="over"),
        element("h1", name),
        element("ul", facts, class_="facts") if facts else None,
        headline(log),
        verdict(log),
        tiles(log),
    )


def headline(log: RunLog) -> Safe:
    """The run in one sentence."""
    evaluated = [event for event in log.evaluations if event.reward_mean is not None]
    rows: list[Any] = (
        evaluated if len(evaluated) > 1 else [row for row in log.iterations if row.reward_mean is not None]
    )
    if len(rows) < 2:
        return element("p", "This run has no two rewards to compare yet.", class_="headline")
    what = "Evaluation reward" if len(evaluated) > 1 else "Training reward (there are no two evaluations)"
    first, last = rows[0], rows[-1]
    change = relative_change(first.reward_mean, last.reward_mean)
    rise = last.reward_mean - first.reward_mean
    moved = "rose" if rise > 0 else "fell" if rise < 0 else "stayed"
    gain = element("strong", percent(change, signed=True)) if change is not None else None
    sentence = (
        f"{what} {moved} from {number(first.reward_mean)} to {number(last.reward_mean)} "
        f"between iterations {first.iteration} and {last.iteration}"
    )
    class_ = "headline" if rise >= 0 else "headline fell"
    return element("p", sentence, [": ", gain, "."] if gain else ".", class_=class_)


def tiles(log: RunLog) -> Safe:
    """A handful of figures about the whole run."""
    rows = log.iterations
    figures = {"iterations": str(rows[-1].iteration) if rows else "0"}
    if rows and rows[-1].samples is not None:
        figures["pictures sampled"] = f"{rows[-1].samples:,}"
    speed = mean([row.pictures_per_second for row in rows])
    if speed is not None:
        figures["pictures per second"] = number(speed, 3)
    training, ended = _total(rows, "total"), log.end.seconds if log.end else None
    if training is not None or ended is not None:
        # run_end knows only the last process of a resumed run; the iterations leave out the evaluations.
        figures["time"] = duration(max(training or 0.0, ended or 0.0))
    parts = [_total(rows, part) for part in ("rollout", "reward", "update")]
    if training and all(parts):
        split = (f"{100 * (part or 0) / training:.0f}" for part in parts)
        figures["rollout / reward / update"] = f"{' / '.join(split)} %"
    start = log.run_start
    if start and start.trainable_parameters is not None:
        figures["trained parameters"] = f"{start.trainable_parameters:,}"
    if log.end is None:
        figures["state"] = "not finished"
    elif log.end.reason and log.end.reason != "finished":
        figures["ended by"] = log.end.reason
    return element(
        "dl",
        [element("div", element("dt", key), element("dd", value)) for key, value in figures.items()],
        class_="tiles",
    )


def _total(rows: list[Iteration], part: str) -> float | None:
    present = [row.seconds[part] for row in rows if row.seconds.get(part) is not None]
    return sum(value for value in present if value is not None) if present else None
