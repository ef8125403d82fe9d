"""Format numbers for people; a value that is missing or not a number becomes an en dash."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"
SPACE = "\u00a0"  # no-break: a number and its unit stay on one line
MINUS = "−"
_LARGEST = 1e30


def number(value: Any) -> float | None:
    """Return ``value`` as a float, or None for anything else: JSON may hold null, NaN, text and enormous numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -_LARGEST <= value <= _LARGEST else None


def significant(value: float, digits: int = 3) -> str:
    """Format with ``digits`` significant digits, and never with an exponent as ``%g`` does."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    # 9.996 rounds to 10.0, which needs one decimal fewer.
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}".replace("-", MINUS)


def count(value: Any) -> str:
    """Format a count: 40800000 -> 40.8 M."""
    amount = number(value)
    if amount is None:
        return NONE
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= 0.9995 * size:
            return f"{significant(amount / size)}{SPACE}{unit}"
    return f"{amount:,.0f}"


def size(value: Any) -> str:
    """Format bytes: 1100000 -> 1.1 MB (decimal units, as a disk's label has them)."""
    amount = number(value)
    if amount is None:
        return NONE
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if amount >= 0.9995 * factor:
            scaled = amount / factor
            return f"{significant(scaled, 2 if scaled < 10 else 3)}{SPACE}{unit}"
    return f"{amount:,.0f}{SPACE}B"


def milliseconds(value: Any) -> str:
    """Format milliseconds: 0.8312 -> 0.83 ms."""
    amount = number(value)
    if amount is None:
        return NONE
    # What two decimals round up to 1 is written 1.00 ms, as its neighbours above 1 are.
    amount = round(amount, 2) if 0.995 <= abs(amount) < 1 else amount
    return f"{significant(amount, 2 if abs(amount) < 1 else 3)}{SPACE}ms"


def seconds(value: Any) -> str:
    """Format seconds: 75.2 -> 1 min 15 s."""
    amount = number(value)
    if amount is None:
        return NONE
    if amount < 59.95:
        return f"{amount:.1f}{SPACE}s"
    minutes, rest = divmod(round(amount), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{SPACE}h {minutes:02d}{SPACE}min"
    return f"{minutes}{SPACE}min {rest:02d}{SPACE}s"


def percent(value: Any, decimals: int = 1) -> str:
    """Format a share: 0.9731 -> 97.3 %."""
    share = number(value)
    return NONE if share is None else f"{100 * share:.{decimals}f}{SPACE}%".replace("-", MINUS)


def points(value: Any) -> str:
    """Format a difference of shares: -0.004 -> −0.4 points, always with its sign."""
    share = number(value)
    if share is None:
        return NONE
    rounded = round(100 * share, 1)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.1f}{SPACE}points"


def times(value: Any) -> str:
    """Format a factor: 2.412 -> 2.41×, with as many digits as the table in the terminal."""
    ratio = number(value)
    if ratio is None:
        return NONE
    return f"{significant(ratio, 3 if ratio >= 1 else 2)}×" if ratio < 100 else f"{ratio:,.0f}×"


def scientific(value: Any) -> str:
    """Format with an exponent: 4.2e-15 -> 4.2e−15."""
    amount = number(value)
    return NONE if amount is None else f"{amount:.1e}".replace("-", MINUS) if amount else "0"


def decibels(value: Any) -> str:
    """Format decibels: 120.04 -> 120.0 dB."""
    amount = number(value)
    return NONE if amount is None else f"{amount:.1f}{SPACE}dB".replace("-", MINUS)
