"""Text in Markdown pages."""

from __future__ import annotations

import html
import re


def escape(text: str) -> str:
    """Text as Markdown shows it, on one line, not at its beginning: no HTML, Markdown, link or mention in it works."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"([\\`*_{}\[\]()!|~:@]|(?<=www)\.)", r"\\\1", html.escape(line, quote=False))


__all__ = ["escape"]
