"""The bottom of the report: settings, environment and warnings as tables and lists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pcpo.observe.layout import clipped, note, section
from pcpo.observe.markup import Safe, element, join
from pcpo.observe.records import RunLog


def flatten(config: Mapping[str, Any], limit: int = 400) -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys and short values, in order; at most `limit` of them."""
    stack: list[tuple[str, Any]] = [("", config)] if config else []
    given = 0
    while stack and given < limit:
        key, value = stack.pop()
        if isinstance(value, Mapping) and value:
            stack += [(f"{key}.{part}" if key else str(part), value[part]) for part in reversed(list(value))]
        elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
            stack += [(f"{key}.{index}", value[index]) for index in reversed(range(len(value)))]
        else:
            given += 1
            yield clipped(key), clipped(_setting(value), 300)


def _setting(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, (list, Mapping)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def words_table(rows: Mapping[str, str]) -> Safe:
    """A table of two columns."""
    lines = [element("tr", element("th", _breakable(key), scope="row"), element("td", v)) for key, v in rows.items()]
    return element("table", element("tbody", lines), class_="pairs-of-words")


def _breakable(key: str) -> Safe:
    """A dotted key that a narrow column breaks behind a dot or an underscore first."""
    return join([part, element("wbr")] if part in "._" else part for part in re.split(r"([._])", key) if part)


def settings(log: RunLog) -> Safe:
    """The resolved configuration and the environment."""
    config = dict(flatten(log.run_start.config)) if log.run_start else {}
    where = dict(flatten(log.run_start.environment)) if log.run_start else {}
    if log.run_start and log.run_start.version:
        where = {"pcpo": log.run_start.version, **where}
    return join(
        (
            section(
                "Settings",
                element("div", words_table(config), class_="columns") if config else note("The log has no settings."),
            ),
            section("Environment", words_table(where)) if where else None,
        )
    )


def warnings(messages: list[str]) -> Safe | None:
    """Warnings, each once with its count; nothing when there are none."""
    if not messages:
        return None
    counted = {message: messages.count(message) for message in dict.fromkeys(messages)}
    lines = [
        element("li", clipped(message, 600), f" ({count} times)" if count > 1 else None)
        for message, count in list(counted.items())[:100]
    ]
    return section(f"Warnings ({len(messages)})", element("ul", lines), class_="warnings")
