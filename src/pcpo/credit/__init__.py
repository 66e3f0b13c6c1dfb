"""Credit: how much each step counts. PCPO's weights: `uniform` and `proportional` in `schedules`."""

from __future__ import annotations

from pcpo.credit.apply import APPLY, StepCredit, check_credit, step_credit
from pcpo.credit.schedules import CREDIT, CreditSpec

__all__ = ["APPLY", "CREDIT", "CreditSpec", "StepCredit", "check_credit", "step_credit"]
