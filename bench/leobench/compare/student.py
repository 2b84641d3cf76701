"""Intervals that hold for few observations: Student's t, and Welch's for two unequal spreads (Biometrika 34, 1947)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# The point of t below which 97.5% lie, by degrees of freedom; between them linear in the inverse.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 8: 2.306, 10: 2.228, 15: 2.131, 30: 2.042}
NORMAL = 1.960


def student(freedom: float) -> float:
    """The 97.5% point of Student's t."""
    inverses = [0.0, *(1 / known for known in reversed(STUDENT))]
    return float(np.interp(1 / freedom, inverses, [NORMAL, *reversed(STUDENT.values())]))


def welch(variances: Sequence[float], freedoms: Sequence[float]) -> float:
    """Half of the 95% interval of the difference of two estimates with these variances and degrees of freedom."""
    total = sum(variances)
    if total == 0:
        return 0.0
    parts = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    return student(total**2 / parts) * math.sqrt(total)
