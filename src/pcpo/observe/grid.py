"""Prompts by iterations: what became of every prompt and noise, one row each; a click enlarges."""

from __future__ import annotations

from collections.abc import Sequence

from pcpo.observe.layout import clipped, section
from pcpo.observe.markup import Safe, element
from pcpo.observe.numbers import number
from pcpo.observe.pictures import Gallery, Row, Shown

FIRST_ROWS = 6


def grid(shown: Gallery | None) -> Safe | None:
    """The card; nothing with less than three evaluations, which the before and after shows already."""
    if shown is None or not shown.rows:
        return None
    return section(
        "Prompt by iteration",
        element(
            "p",
            "One row per prompt and noise, one column per evaluation. Click a picture to enlarge it; "
            "arrow keys, or the buttons there, move to its neighbours.",
        ),
        _table(shown.iterations, shown.rows),
        zoom(),
    )


def zoom() -> Safe:
    """The dialog that shows a picture large; report.js fills it. It opens nothing without a script."""
    step = [
        element("button", sign, type="button", data_move=move, aria_label=words)
        for sign, move, words in (
            ("\u2190", "-1 0", "picture to the left"),
            ("\u2192", "1 0", "picture to the right"),
            ("\u2191", "0 -1", "row above"),
            ("\u2193", "0 1", "row below"),
        )
    ]
    close = element("button", "close", type="button", data_move="close")
    place = element("figure", element("div", class_="large"), element("figcaption", aria_live="polite"))
    return element("dialog", place, element("p", step, close, class_="steps"), id="zoom", aria_label="Enlarged picture")


def _table(iterations: list[int], rows: list[Row]) -> list[Safe]:
    cells = [
        (row.prompt, [cell(shown, row.prompt, f"iteration {shown.iteration}") for shown in row.pictures])
        for row in rows
    ]
    return picture_table("iteration", [element("span", str(at)) for at in iterations], cells)


def picture_table(corner: str, heads: Sequence[Safe], rows: Sequence[tuple[str, Sequence[Safe]]]) -> list[Safe]:
    """Rows of (prompt, cells) under the heads of their columns; all but the first wait behind a line of text."""
    head = [element("th", corner, scope="col"), *(element("th", words, scope="col") for words in heads)]

    def table(part: Sequence[tuple[str, Sequence[Safe]]]) -> Safe:
        lines = [
            element(
                "tr",
                element("th", element("span", clipped(prompt, 60), class_="prompt"), scope="row"),
                [element("td", picture) for picture in cells],
            )
            for prompt, cells in part
        ]
        whole = element("table", element("thead", element("tr", head)), element("tbody", lines), class_="filmstrip")
        return element("div", whole, class_="scroll")

    rest = rows[FIRST_ROWS:]
    more = [element("details", element("summary", f"{len(rest)} more rows"), table(rest))] if rest else []
    return [table(rows[:FIRST_ROWS]), *more]


def cell(shown: Shown, prompt: str, what: str) -> Safe:
    """A picture that can be enlarged; `what` says which one it is of its row."""
    value = f", reward {number(shown.value, 3)}" if shown.value is not None else ""
    words = f"{clipped(prompt)}: {what}{value}"
    width, height = shown.size  # keeps the place of a picture that the browser has not decoded yet
    picture = element("img", src=shown.uri, alt="", width=width, height=height, loading="lazy", decoding="async")
    return element("button", picture, type="button", class_="enlarge", aria_label=words, title=words)
