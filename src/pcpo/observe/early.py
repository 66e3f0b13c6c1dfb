"""The early warning: the reward against what should not change with it, and a verdict by a stated rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pcpo.observe.layout import clipped, legend, line_swatch, note, section
from pcpo.observe.markup import Safe, element
from pcpo.observe.numbers import number
from pcpo.observe.records import Evaluation, Iteration, RunLog
from pcpo.observe.series import series
from pcpo.observe.signs import Sign, Signs, signs
from pcpo.observe.svg import Frame, fit, iterations_scale, path, titled

RULE = (
    "A sign counts when the mean over prompts has left its limit (dashed) at the last two evaluations and the 95 % "
    "interval of the change over prompts leaves out 0. Limits: a fifth of the diversity at the start; for a reward, "
    "half of the standard deviation among prompts at the start; for pixel monitors, all of it; a tenth more "
    "near-duplicates. For the KL: 10 times the beginning, by medians over a quarter of the iterations."
)
KL: tuple[tuple[str, Callable[[Iteration], float | None]], ...] = (
    ("KL to the sampling policy", lambda row: row.approx_kl),
    ("KL to the reference model", lambda row: row.kl_ref),
)


def verdict(log: RunLog) -> Safe | None:
    """One line for the head of the page; nothing before there is anything to judge."""
    found = signs(log)
    alarms, notes = found.alarms(), found.notes()
    if not alarms and not notes and not found.judged:
        return None
    said = alarms or notes or ["No warning sign beside the reward."]
    kind = "alarm" if alarms else "calm"
    return element(
        "p", element("a", said[0], href="#early-warning"), class_=f"verdict {kind}", role="status" if alarms else None
    )


def early_warning(log: RunLog) -> Safe:
    """Charts of diversity, held-out rewards, KL and pixel monitors, each against the reward."""
    title, found = "Early warning", signs(log)
    reward = found.reward.points
    last = max([row.iteration for row in log.iterations] + [event.iteration for event in log.evaluations], default=0)
    first = [*([found.diversity] if found.diversity else []), *found.held_out]
    first += [sign for sign in found.pixels if sign.rule.alarm]
    rest = [sign for sign in found.pixels if not sign.rule.alarm]
    figures = [_figure(sign, log.evaluations, reward, last) for sign in first]
    figures += [drawn for words, value in KL if (drawn := _kl(words, value, log, found, last))]
    if not figures and not rest:
        return section(title, note("No evaluation with monitors and no KL has been logged yet."), id_="early-warning")
    pixels = [_figure(sign, log.evaluations, reward, last) for sign in rest]
    return section(
        title,
        _verdict(found),
        legend(
            line_swatch("line training", "monitor"),
            line_swatch("line ghost", "evaluation reward, on a scale of its own") if len(reward) > 1 else None,
            line_swatch("line limit", "limit") if found.judged else None,
        ),
        element("div", figures, class_="multiples"),
        element(
            "details",
            element("summary", "Pixel monitors: texture, colour, exposure"),
            element("div", pixels, class_="multiples"),
            open=any(sign.left for sign in rest),
        )
        if pixels
        else None,
        element("details", element("summary", "The rule"), element("p", RULE)),
        id_="early-warning",
    )


def _verdict(found: Signs) -> Safe:
    alarms, notes = found.alarms(), found.notes()
    if alarms or notes:
        lines = [element("strong", sentence, " ") for sentence in alarms] + [f"{sentence} " for sentence in notes]
        return element("p", lines, class_="verdict alarm" if alarms else "verdict")
    if not found.monitors:
        return element("p", "This log has no monitors: there is nothing but the KL to look at.", class_="verdict")
    if not found.judged:
        return element("p", "Too early to tell: the rule needs a start and two later evaluations.", class_="verdict")
    moved = f" The reward {found.reward.words}." if found.reward.points else ""
    return element("p", f"No warning sign: nothing beside the reward has left its limit.{moved}", class_="verdict")


def _figure(sign: Sign, events: Sequence[Evaluation], reward: Sequence[tuple[int, float]], last: int) -> Safe:
    words = sign.name[0].upper() + sign.name[1:]
    return element(
        "figure",
        element("h3", clipped(words)),
        against_chart(sign.name, sign.points, _limits(sign), reward, last) or note("not logged"),
        element("figcaption", _figures(sign, events), class_="values"),
        class_="left" if sign.left else None,
    )


def _limits(sign: Sign) -> list[float]:
    """Where the limit stands in the chart."""
    if not sign.limit:
        return []
    return [
        sign.points[0][1] + side * sign.limit for side in ([sign.rule.direction] if sign.rule.direction else [-1, 1])
    ]


def _figures(sign: Sign, events: Sequence[Evaluation]) -> str:
    """The change with its interval and limit; for the diversity, where it was measured."""
    said = []
    if sign.change is not None and sign.low is not None and sign.high is not None:
        limit = {-1: "-", 0: "\u00b1", 1: "+"}[sign.rule.direction] + number(sign.limit, 2)
        said.append(
            f"change {number(sign.change, 2)} (95 %: {number(sign.low, 2)} to {number(sign.high, 2)}; limit {limit})"
        )
    elif sign.limit is None:
        said.append("not judged yet")
    if sign.name == "diversity" and events and events[-1].diversity_features:
        among = "two pictures of a prompt" if events[-1].diversity_among == "prompt" else "two prompts' pictures"
        said.append(f"mean distance of {among} in {events[-1].diversity_features}")
    return "; ".join(said)


def against_chart(
    name: str,
    points: Sequence[tuple[float, float]],
    limits: Sequence[float],
    reward: Sequence[tuple[int, float]],
    last: int,
) -> Safe | None:
    """A quantity over iterations 0..last with its limits, and the reward behind it on a scale of its own."""
    if not points:
        return None
    frame = Frame(360, 190, left=70, right=12, top=12)
    x = iterations_scale([0, last], *frame.x_range)
    values = [value for _, value in points]
    y = fit([*values, *limits], *frame.y_range)
    behind = fit([value for _, value in reward], *frame.y_range) if len(reward) > 1 else None
    return frame.draw(
        "small-chart against",
        f"{name} over iterations: first {number(values[0])}, last {number(values[-1])}.",
        frame.y_axis(y, "mean", 4),
        frame.x_axis(x, "iteration", 5),
        [path([(frame.x_range[0], y(limit)), (frame.x_range[1], y(limit))], "line limit") for limit in limits],
        path([(x(at), behind(value)) for at, value in reward], "line ghost") if behind else None,
        path([(x(at), y(value)) for at, value in points], "line training") if len(values) > 1 else None,
        [
            titled("circle", f"iteration {at:g}: {number(value)}", cx=x(at), cy=y(value), r=3.0, class_="dot training")
            for at, value in points
        ],
    )


def _kl(title: str, value: Callable[[Iteration], float | None], log: RunLog, found: Signs, last: int) -> Safe | None:
    samples = series(log.iterations, value, limit=80)
    if not samples:
        return None
    points = [(sample.x, sample.value) for sample in samples]
    nothing = all(sample.value == 0 for sample in samples)
    drawn = (
        note(f"exactly 0 in all {len(log.iterations)} iterations")
        if nothing
        else against_chart("KL", points, [], found.reward.points, last)
    )
    away = found.kl_runs_away and title == KL[0][0]
    return element("figure", element("h3", title), drawn, class_="left" if away else None)
