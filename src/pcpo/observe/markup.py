"""HTML and SVG by construction: text is escaped unless it was built here; a prompt cannot become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Union

VOID = frozenset({"br", "img", "input", "meta", "wbr"})
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Safe(str):
    """Markup that needs no escaping. Only this module and package files make it from text."""

    __slots__ = ()


Child = Union[str, float, None, Iterable["Child"]]  # noqa: UP007 - evaluated at run time, with a forward name


def escape(text: object) -> Safe:
    """Escape text for content and quoted attributes; control characters and lone surrogates become U+FFFD."""
    return Safe(html.escape(CONTROL.sub("\ufffd", str(text)), quote=True))


def join(children: Iterable[Child]) -> Safe:
    """Concatenate children: Safe as it is, other text escaped, None left out, iterables flattened."""
    return Safe("".join(_markup(child) for child in children))


def element(name: str, /, *children: Child, **attributes: object) -> Safe:
    """Build an element. class_ means class, aria_label aria-label; None and False leave an attribute out."""
    written = "".join(
        f" {_name(key)}" if value is True else f' {_name(key)}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Safe(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{join(children)}</{name}>")


def _markup(child: Child) -> str:
    if isinstance(child, Safe):
        return child
    if child is None:
        return ""
    if isinstance(child, (str, int, float)):
        return escape(child)
    return join(child)


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: object) -> object:
    """Coordinates need no more than a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
