"""Figures of a study, from the plain data of `pcpo.study.analysis`. Needs matplotlib."""

from __future__ import annotations

from pcpo.study.figures.along import draw_along
from pcpo.study.figures.curves import draw_curves
from pcpo.study.figures.ends import draw_ends
from pcpo.study.figures.forest import draw_forest, draw_overall
from pcpo.study.figures.rates import draw_rates, rates
from pcpo.study.figures.steps import draw_steps
from pcpo.study.figures.style import require_matplotlib

__all__ = [
    "draw_along",
    "draw_curves",
    "draw_ends",
    "draw_forest",
    "draw_overall",
    "draw_rates",
    "draw_steps",
    "rates",
    "require_matplotlib",
]
