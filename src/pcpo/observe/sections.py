"""The middle of the report: pictures and charts. Each part takes the log; what is missing becomes a note."""

from __future__ import annotations

from collections.abc import Callable

from pcpo.observe.charts import clip_heatmap, credit_bars, credit_heatmap, reward_curve, small_chart
from pcpo.observe.layout import NARROW, both, clipped, legend, line_swatch, note, section, swatch
from pcpo.observe.markup import Safe, element
from pcpo.observe.numbers import number, percent, relative_change
from pcpo.observe.pictures import Gallery, Pair
from pcpo.observe.records import Evaluation, Iteration, RunLog
from pcpo.observe.series import distance, series, spread, step_shares
from pcpo.observe.tables import words_table

FIRST_PAIRS = 12


def pictures(shown: Gallery | None) -> Safe:
    """Before and after, with a slider per picture, and the way between."""
    if shown is None or not shown.pairs:
        return section("Before and after", note("No evaluation pictures were found in the run folder."))
    first, last = shown.pairs[0].before.iteration, shown.pairs[0].after.iteration
    if first == last:
        intro = f"There is one evaluation so far, at iteration {first}: there is nothing to compare it with yet."
    else:
        intro = (
            f"Left of the handle: iteration {first}. Right of it: iteration {last}. "
            "Same prompt and starting noise on both sides. Drag, or focus a picture and use the arrow keys."
        )
    some = (
        f" {len(shown.pairs)} of {shown.available} pictures, evenly spaced."
        if len(shown.pairs) < shown.available
        else ""
    )
    slider = element("input", type="range", id="move-all", min=0, max=100, value=50, aria_label="Move all sliders")
    return section(
        "Before and after",
        element("p", intro, some),
        element("label", "all at once", slider, class_="all"),
        element("div", [_pair(pair) for pair in shown.pairs[:FIRST_PAIRS]], class_="pairs"),
        _more_pairs(shown.pairs[FIRST_PAIRS:]),
    )


def _more_pairs(pairs: list[Pair]) -> Safe | None:
    """Pictures that wait behind a line of text."""
    if not pairs:
        return None
    return element(
        "details",
        element("summary", f"{len(pairs)} more pictures"),
        element("div", [_pair(pair) for pair in pairs], class_="pairs"),
    )


def _pair(pair: Pair) -> Safe:
    prompt = clipped(pair.prompt)
    values = None
    if pair.before is pair.after and pair.after.value is not None:
        values = element("span", element("b", number(pair.after.value, 3)), class_="values")
    elif pair.before.value is not None and pair.after.value is not None:
        values = element(
            "span",
            number(pair.before.value, 3),
            " \u2192 ",
            element("b", number(pair.after.value, 3)),
            class_="values",
        )
    stage = element(
        "div",
        element("img", src=pair.after.uri, alt=f"after training: {prompt}"),
        element("img", src=pair.before.uri, alt=f"before training: {prompt}", class_="before"),
        element("input", type="range", min=0, max=100, value=50, aria_label=f"Before and after: {prompt}"),
        element("span", class_="handle"),
        class_="stage",
    )
    return element(
        "figure",
        stage,
        element("figcaption", element("span", prompt, class_="prompt"), values),
        class_="pair",
    )


def reward(log: RunLog) -> Safe:
    """Reward curve, and the parts of a mixed reward."""
    return section(
        "Reward",
        legend(
            line_swatch("line training", "training, mean of the iteration") if log.iterations else None,
            swatch("band", "\u00b1 1 standard deviation") if len(log.iterations) > 1 else None,
            line_swatch("line evaluation", "evaluation, fixed prompts and noise") if log.evaluations else None,
        ),
        both(lambda width: reward_curve(log, width), "No iteration and no evaluation has been logged yet."),
        _reward_parts(log.evaluations),
    )


def _reward_parts(evaluations: list[Evaluation]) -> Safe | None:
    """First and last evaluation of each part, when there are several."""
    if len(evaluations) < 2 or len(evaluations[-1].rewards) < 2:
        return None
    first, last = evaluations[0], evaluations[-1]
    rows = {}
    for name, value in last.rewards.items():
        before = first.rewards.get(name)
        change = relative_change(before, value)
        gain = f" ({percent(change, signed=True)})" if change is not None else ""
        rows[name] = f"{number(before)} \u2192 {number(value)}{gain}"
    return element("div", element("h3", "Parts of the reward at evaluation"), words_table(rows), class_="sub")


def credit(log: RunLog) -> Safe:
    """Native weight, target and measured gradient share per step."""
    title, missing = "Credit per sampling step", "The log has no credit schedule."
    found = step_shares(log)
    if found is None:
        return section(title, note(missing))
    ratio = {
        "native": spread(found.native),
        "target": spread(found.target),
        "measured": spread(found.measured),
    }
    figures = {kind: f"{number(value, 3)} : 1" if value else "" for kind, value in ratio.items()}
    times = f" (mean of {found.measurements} measurements; line: range)" if found.measurements > 1 else ""
    return section(
        title,
        element("p", _credit_claim(log)),
        legend(
            swatch("bar native", "native weight", figures["native"]) if found.native else None,
            swatch("bar target", "target", figures["target"]) if found.target else None,
            swatch("bar measured", f"measured gradient share{times}", figures["measured"]) if found.measured else None,
        ),
        both(lambda width: credit_bars(found, width), missing),
        None if found.measured else note("The gradient share was not measured in this run."),
        _credit_history(log),
    )


def _credit_history(log: RunLog) -> Safe | None:
    """How a measured schedule came to be."""
    if credit_heatmap(log, NARROW) is None:
        return None
    words = "The target was measured as training went on; this is the share that each step had after each iteration."
    chart = both(lambda width: credit_heatmap(log, width), "")
    return element("div", element("h3", "How the target changed"), element("p", words), chart, class_="sub")


def _credit_claim(log: RunLog) -> str:
    """What the bars say, as two distances."""
    found = step_shares(log)
    native = distance(found.native, found.target) if found else None
    measured = distance(found.measured, found.target) if found else None
    said = "Each step's share of the total credit; in the legend, the largest share to the smallest."
    if native is not None:
        said += f" The sampler's own weights put {percent(native)} of it at other steps than the target does"
        said += f"; in the measured gradient it is {percent(measured)}." if measured is not None else "."
    return said


def clipping(log: RunLog) -> Safe:
    """Clip fraction per step and iteration."""
    return section(
        "Clip fraction per step and iteration",
        element(
            "p",
            "Share of pictures whose loss is clipped. Hatched: the step was not trained in that iteration.",
        ),
        both(lambda width: clip_heatmap(log, width), "No clip fractions per step have been logged."),
    )


MULTIPLES: tuple[tuple[str, str, Callable[[Iteration], float | None], dict[str, bool]], ...] = (
    ("Gradient norm before clipping", "gradient norm", lambda row: row.grad_norm, {}),
    ("Ratio error before the first update", "max |log ratio|", lambda row: row.ratio_error, {"log": True}),
    ("Clip fraction", "clipped", lambda row: row.clip_fraction, {"shares": True}),
    ("Clipped below (advantage < 0)", "clipped below", lambda row: row.clip_fraction_low, {"shares": True}),
    ("Clipped above (advantage > 0)", "clipped above", lambda row: row.clip_fraction_high, {"shares": True}),
    ("Groups with equal rewards", "groups", lambda row: float(row.zero_std_groups), {}),
    ("Loss", "loss", lambda row: row.loss, {}),
)
OPTIONAL = {"Loss", "Clipped below (advantage < 0)", "Clipped above (advantage > 0)"}


def health(log: RunLog) -> Safe:
    """Small charts of the quantities that tell a healthy run from a sick one."""
    title = "Training health"
    if not log.iterations:
        return section(title, note("No iteration has been logged yet."))
    figures = []
    for name, label, value, options in MULTIPLES:
        samples = series(log.iterations, value, limit=150)
        if not samples and name in OPTIONAL:
            continue
        if samples and all(sample.value == 0 for sample in samples):
            drawn: Safe | None = note(f"exactly 0 in all {len(log.iterations)} iterations")
        else:
            drawn = small_chart(samples, label, **options)
        figures.append(element("figure", element("h3", name), drawn or note("not logged")))
    return section(title, element("div", figures, class_="multiples"))
