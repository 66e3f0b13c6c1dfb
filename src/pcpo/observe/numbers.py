"""Numbers as people read them, the same in the terminal and in the report."""

from __future__ import annotations


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits, thousands separated, powers of ten outside 1e-3..1e6; n/a for None."""
    if value is None:
        return "n/a"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def percent(value: float | None, *, signed: bool = False) -> str:
    """A fraction as a percentage with three significant digits at most; n/a for a missing number."""
    if value is None:
        return "n/a"
    hundred = 100 * value
    places = 0 if abs(hundred) >= 99.95 or hundred == 0 else 1 if abs(hundred) >= 0.95 else 2
    return f"{hundred:{'+' if signed else ''},.{places}f} %"


def relative_change(first: float | None, last: float | None) -> float | None:
    """(last - first) / |first|; None when a value is missing or the first is too near zero to divide by."""
    if first is None or last is None or abs(first) < 1e-6:
        return None
    return (last - first) / abs(first)
