"""Numbers as people read them: three digits that count, thousands apart, seconds in the unit that fits."""

from __future__ import annotations

import math

MISSING = "–"


def number(value: float | None) -> str:
    """Three significant digits; whole from 100 on. 1234.5 is 1,234 and 0.01234 is 0.0123."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    if abs(rounded) >= 100:
        return f"{value:,.0f}"
    return f"{rounded:.{2 - math.floor(math.log10(abs(rounded)) + 1e-12)}f}"


def duration(seconds: float | None) -> str:
    """From milliseconds to minutes."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if abs(seconds) < 0.9995:
        return f"{number(seconds * 1000)} ms"
    if abs(seconds) < 120:
        return f"{number(seconds)} s"
    return f"{number(seconds / 60)} min"


def share(value: float | None) -> str:
    """A part of one as a percentage. What is not quite all never reads as 100%, nor what is not quite none as 0%."""
    if value is None or not math.isfinite(value):
        return MISSING
    if 0 < value < 0.0001:
        return "<0.01%"
    if 0.9999 < value < 1:
        return ">99.99%"
    if value in (0, 1):
        return f"{value:.0%}"
    return f"{value:.1%}" if 0.01 <= value < 0.995 else f"{value:.2%}"


def count(value: float, noun: str) -> str:
    """'1 request', '1,234 requests'."""
    return f"{value:,.0f} {noun}" + ("" if value == 1 else "s")
