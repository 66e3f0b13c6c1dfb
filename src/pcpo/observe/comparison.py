"""The page of `pcpo compare`: models side by side on the same prompts and noises, with their rewards."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pcpo.data.images import to_pil
from pcpo.observe.document import document
from pcpo.observe.layout import section
from pcpo.observe.markup import Safe, element
from pcpo.observe.numbers import number, percent
from pcpo.observe.pictures import BUDGET, data_uri

SIDE = 512


@dataclass(frozen=True)
class Row:
    """One prompt. pictures: per model [count, 3, H, W] uint8; values: per model reward -> [count], nan for none."""

    prompt: str
    pictures: Sequence[Tensor]
    values: Sequence[Mapping[str, Sequence[float]]]


def page(names: Sequence[str], rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """The whole page; below 5 MB whatever the number of pictures."""
    total = sum(len(pictures) for row in rows for pictures in row.pictures)
    facts = {
        "prompts": len(rows),
        "pictures per prompt": settings["count"],
        "steps": settings["steps"],
        "guidance": f"{settings['guidance_scale']:g}",
        "seed": settings["seed"],
    }
    return document(
        f"PCPO comparison: {' and '.join(names)}",
        element(
            "header",
            element("p", "PCPO comparison", class_="over"),
            element("h1", f"{names[0]} against {_listed(names[1:])}"),
            element("ul", [element("li", element("b", key), value) for key, value in facts.items()], class_="facts"),
            element("p", "The same prompts and noises for every model: pictures at the same place belong together."),
        ),
        element("main", _rewards(names, rows), [_prompt(names, row, BUDGET // max(total, 1)) for row in rows]),
        element("footer", element("p", "Written by pcpo compare.")),
    )


def _rewards(names: Sequence[str], rows: Sequence[Row]) -> Safe | None:
    """For every reward, the means of the models and the paired differences from the first; nothing without rewards."""
    rewards = list(rows[0].values[0])
    if not rewards:
        return None
    parts = []
    for reward in rewards:
        columns = [[v for row in rows for v in row.values[place][reward]] for place in range(len(names))]
        lines = [_line("th", "model", "mean", f"against {names[0]}", "better")]
        lines.append(_line("td", names[0], _mean(columns[0]), "", ""))
        lines += [
            _line("td", name, *_figures(column, columns[0]))
            for name, column in zip(names[1:], columns[1:], strict=True)
        ]
        parts += [element("h3", reward, class_="sub"), element("table", lines, class_="pairs-of-words figures")]
    words = "Means with standard errors; differences are paired, picture by picture."
    return section("Rewards", element("p", words), parts)


def _line(kind: str, *cells: str) -> Safe:
    return element("tr", [element(kind, cell) for cell in cells])


def _figures(column: Sequence[float], first: Sequence[float]) -> tuple[str, str, str]:
    pairs = [b - a for a, b in zip(first, column, strict=True) if not math.isnan(b - a)]
    better = sum(d > 0 for d in pairs) / len(pairs) if pairs else None
    return _mean(column), _mean(pairs, signed=True), percent(better)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _mean(values: Sequence[float], signed: bool = False, error: bool = True) -> str:
    """mean, or mean +- standard error, of what is no nan."""
    kept = [v for v in values if not math.isnan(v)]
    if not kept:
        return "n/a"
    mean = statistics.fmean(kept)
    text = f"{'+' if signed and mean > 0 else ''}{number(mean)}"
    return (
        text if len(kept) < 2 or not error else f"{text} \u00b1 {number(statistics.stdev(kept) / len(kept) ** 0.5, 2)}"
    )


def _prompt(names: Sequence[str], row: Row, budget: int) -> Safe:
    """A card: for each model its strip of pictures."""
    figures = []
    for name, pictures, values in zip(names, row.pictures, row.values, strict=True):
        images = [
            element("img", src=data_uri(to_pil(picture), SIDE, budget), alt=f"{name}, picture {n + 1}: {row.prompt}")
            for n, picture in enumerate(pictures)
        ]
        means = [f"{key} {_mean(column, error=False)}" for key, column in values.items()]
        figures.append(
            element(
                "figure",
                element("figcaption", element("b", name), [element("span", text, class_="values") for text in means]),
                element("div", images, class_=f"strip-of-{min(len(images), 4)}"),
            )
        )
    return element("section", element("h2", row.prompt, class_="prompt"), element("div", figures, class_="models"))
