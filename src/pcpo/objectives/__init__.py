"""Objectives: from a log-ratio and an advantage to a loss per (picture, step) pair."""

from __future__ import annotations

from pcpo.objectives.compose import OBJECTIVES, ObjectiveSpec, make_objective
from pcpo.objectives.penalties import PENALTIES
from pcpo.objectives.ratio import log_ratio

__all__ = ["OBJECTIVES", "PENALTIES", "ObjectiveSpec", "log_ratio", "make_objective"]
