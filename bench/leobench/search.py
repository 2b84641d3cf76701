"""The highest value of something that is kept, by bisection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec import Struct


class Found(Struct, frozen=True):
    """highest: the highest value that was tried and kept; None when not even the lowest was.

    lowest_broken: the lowest that was tried and not kept; None when even the highest was kept
    """

    highest: float | None
    lowest_broken: float | None


async def highest(
    low: float, high: float, tolerance: float, kept: Callable[[float], Awaitable[bool]], *, whole: bool = False
) -> Found:
    """Try `low` and `high`, then halve what lies between until it is less than `tolerance` of the value.

    whole: only whole numbers are tried. What is not kept at a value is taken not to be kept above it.
    """
    if not await kept(low):
        return Found(None, low)
    if high <= low:
        return Found(low, None)
    if await kept(high):
        return Found(high, None)
    good, bad = low, high
    while bad - good > tolerance * good:
        middle = float((good + bad) // 2) if whole else (good + bad) / 2
        if middle <= good:
            break
        if await kept(middle):
            good = middle
        else:
            bad = middle
    return Found(good, bad)
