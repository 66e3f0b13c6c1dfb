"""Prompts by iterations: what became of every prompt and noise, one row each; a click enlarges."""

from __future__ import annotations

from pcpo.observe.layout import clipped, section
from pcpo.observe.markup import Safe, element
from pcpo.observe.numbers import number
from pcpo.observe.pictures import Gallery, Row, Shown

FIRST_ROWS = 6


def grid(shown: Gallery | None) -> Safe | None:
    """The card; nothing with less than three evaluations, which the before and after shows already."""
    if shown is None or not shown.rows:
        return None
    rest = shown.rows[FIRST_ROWS:]
    return section(
        "Prompt by iteration",
        element(
            "p",
            "One row per prompt and noise, one column per evaluation. Click a picture to enlarge it; "
            "arrow keys, or the buttons there, move to its neighbours.",
        ),
        _table(shown.iterations, shown.rows[:FIRST_ROWS]),
        element("details", element("summary", f"{len(rest)} more rows"), _table(shown.iterations, rest))
        if rest
        else None,
        zoom(),
    )


def zoom() -> Safe:
    """The dialog that shows a picture large; report.js fills it. It opens nothing without a script."""
    step = [
        element("button", sign, type="button", data_move=move, aria_label=words)
        for sign, move, words in (
            ("\u2190", "-1 0", "previous evaluation"),
            ("\u2192", "1 0", "next evaluation"),
            ("\u2191", "0 -1", "row above"),
            ("\u2193", "0 1", "row below"),
        )
    ]
    close = element("button", "close", type="button", data_move="close")
    place = element("figure", element("div", class_="large"), element("figcaption", aria_live="polite"))
    return element("dialog", place, element("p", step, close, class_="steps"), id="zoom", aria_label="Enlarged picture")


def _table(iterations: list[int], rows: list[Row]) -> Safe:
    head = [element("th", "iteration", scope="col")] + [element("th", str(at), scope="col") for at in iterations]
    lines = [
        element(
            "tr",
            element("th", element("span", clipped(row.prompt, 60), class_="prompt"), scope="row"),
            [element("td", cell(shown, row.prompt, f"iteration {shown.iteration}")) for shown in row.pictures],
        )
        for row in rows
    ]
    table = element("table", element("thead", element("tr", head)), element("tbody", lines), class_="filmstrip")
    return element("div", table, class_="scroll")


def cell(shown: Shown, prompt: str, what: str) -> Safe:
    """A picture that can be enlarged; `what` says which one it is of its row."""
    value = f", reward {number(shown.value, 3)}" if shown.value is not None else ""
    words = f"{clipped(prompt)}: {what}{value}"
    width, height = shown.size  # keeps the place of a picture that the browser has not decoded yet
    picture = element("img", src=shown.uri, alt="", width=width, height=height, loading="lazy", decoding="async")
    return element("button", picture, type="button", class_="enlarge", aria_label=words, title=words)
