"""Which differences between runs exceed their own spread.

Where a side has several runs, the spread is the one between runs: Welch's interval, and a side with a single run is
taken to spread as the other one does. With a single run on each side it comes from within them, see `blocks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from leobench.compare.blocks import Blocks
from leobench.compare.quantities import QUANTITIES, Quantity
from leobench.compare.student import student, welch
from leobench.records import Run
from leobench.summary import summarize

Values = npt.NDArray[np.float64]
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """A quantity on two sides. `change` is a ratio, of shares a difference, and lies between `low` and `high`."""

    quantity: Quantity
    first: float
    other: float
    change: float
    low: float
    high: float
    blocks: float | None = None  # independent ones that the spread within single runs is from

    @property
    def verdict(self) -> Literal["faster", "slower", "better", "worse", "no difference shown"]:
        """Only where the whole interval lies on one side of no change."""
        same = 1.0 if self.quantity.as_ratio else 0.0
        if self.low - ROUNDING <= same <= self.high + ROUNDING:
            return "no difference shown"
        gain = (self.change > same) == self.quantity.more_is_better
        if self.quantity.as_ratio:
            return "faster" if gain else "slower"
        return "better" if gain else "worse"


def differences(first: Sequence[Run], other: Sequence[Run]) -> list[Difference]:
    """Every quantity that all of these runs have, of `other` against `first`."""
    summaries = [[summarize(run) for run in side] for side in (first, other)]
    blocks = Blocks(first[0], other[0]) if len(first) == len(other) == 1 else None
    found = []
    for quantity in QUANTITIES:
        sides = [side for side in (_numbers(quantity, part) for part in summaries) if side is not None]
        if len(sides) < 2:
            continue
        margin, told = blocks.margin(quantity) if blocks else (_between(sides[0], sides[1]), None)
        centers = [float(np.mean(side)) for side in sides]
        change = centers[1] - centers[0]
        first_value, other_value = (math.exp(center) if quantity.as_ratio else center for center in centers)
        interval = (change, change - margin, change + margin)
        change, low, high = (
            (math.exp(value) for value in interval)
            if quantity.as_ratio
            else (min(max(value, -1.0), 1.0) for value in interval)  # shares differ by no more
        )
        found.append(Difference(quantity, first_value, other_value, change, low, high, told))
    return found


def _numbers(quantity: Quantity, summaries: Sequence[dict[str, Any]]) -> Values | None:
    """A quantity of each run, as logarithms where it is compared as a ratio. None where a run does not have it."""
    found = [quantity.of(summary) for summary in summaries]
    if any(value is None or (quantity.as_ratio and value <= 0) for value in found):
        return None
    values = np.asarray(found, dtype=np.float64)
    return np.log(values) if quantity.as_ratio else values


def _between(first: Values, other: Values) -> float:
    """Half of a difference's interval: Welch's, or with the same spread for both where a side is a single run."""
    spreads = [float(np.var(side, ddof=1)) if side.size > 1 else None for side in (first, other)]
    variances = [
        (own if own is not None else spreads[1 - place] or 0.0) / size
        for place, (own, size) in enumerate(zip(spreads, (first.size, other.size), strict=True))
    ]
    if None in spreads:
        return student(max(first.size, other.size) - 1) * math.sqrt(sum(variances))
    return welch(variances, [first.size - 1, other.size - 1])
