"""Pieces that the report's sections share: cards, notes, legends, charts in two widths."""

from __future__ import annotations

from collections.abc import Callable

from pcpo.observe.markup import Child, Safe, element

WIDE, NARROW = 1040, 350


def note(words: str) -> Safe:
    """Stands where a chart would be."""
    return element("p", words, class_="note")


def section(title: str, *children: Child, class_: str | None = None, id_: str | None = None) -> Safe:
    """A card with a heading."""
    return element("section", element("h2", title), *children, class_=class_, id_=id_)


def both(draw: Callable[[int], Safe | None], missing: str) -> Safe:
    """A chart drawn twice, for wide and for narrow pages, so that its labels keep their size; or a note."""
    wide, narrow = draw(WIDE), draw(NARROW)
    if wide is None or narrow is None:
        return note(missing)
    return element("figure", element("div", wide, class_="wide"), element("div", narrow, class_="narrow"))


def swatch(class_: str, words: str, figures: str = "") -> Safe:
    """A legend entry."""
    shape = element("rect", x=2, y=2, width=18, height=10, rx=2, class_=class_)
    return _entry(shape, words, figures)


def line_swatch(class_: str, words: str) -> Safe:
    """A legend entry for a line."""
    return _entry(element("path", d="M1 7L21 7", class_=class_), words, "")


def _entry(shape: Safe, words: str, figures: str) -> Safe:
    drawing = element("svg", shape, viewBox="0 0 22 14", aria_hidden="true")
    return element(
        "li", drawing, element("span", words), element("span", figures, class_="number") if figures else None
    )


def legend(*entries: Safe | None) -> Safe:
    """Legend entries in a row."""
    return element("ul", *entries, class_="legend")


def clipped(words: str, limit: int = 160) -> str:
    """At most `limit` characters of a prompt."""
    return words if len(words) <= limit else words[: limit - 1] + "\u2026"
