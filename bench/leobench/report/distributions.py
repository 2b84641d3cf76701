"""How latencies are distributed: histograms over common bins and the share of requests that took at most so long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from leobench.records import RequestRecord
from leobench.report.shown import Shown
from leobench.summary import e2e, gaps, measured, ttft

BINS = 48
STEPS = 256  # of a cumulative curve, more than the pixels of its height
SHORTEST = 1e-4  # seconds; an axis of powers has no place for 0, and a network no meaning for less

Values = npt.NDArray[np.float64]


def _one(latency: Callable[[RequestRecord], float | None]) -> Callable[[RequestRecord], Iterable[float]]:
    def values(record: RequestRecord) -> Iterable[float]:
        value = latency(record)
        return () if value is None else (value,)

    return values


QUANTITIES: dict[str, Callable[[RequestRecord], Iterable[float]]] = {"ttft": _one(ttft), "itl": gaps, "e2e": _one(e2e)}


def distributions(entries: Sequence[Shown]) -> dict[str, Any]:
    """For each quantity the common `edges` (bins + 1, seconds) and one item a run, None where it has no values.

    `clipped`: the first bin has shorter ones, too.
    """
    found: dict[str, Any] = {}
    for name, of in QUANTITIES.items():
        values = [_values(entry, of) for entry in entries]
        edges = _edges([part for part in values if part.size])
        found[name] = {
            "edges": [float(edge) for edge in edges],
            "clipped": any(part.size and part[0] < SHORTEST for part in values),
            "runs": [_distribution(part, edges) if part.size else None for part in values],
        }
    return found


def _values(entry: Shown, of: Callable[[RequestRecord], Iterable[float]]) -> Values:
    values = [value for record in measured(entry.run) if record.error is None for value in of(record)]
    return np.sort(np.asarray(values, dtype=np.float64))


def _edges(values: Sequence[Values]) -> Values:
    """Bins of equal width on an axis of powers, from the shortest to the longest of all runs."""
    if not values:
        return np.zeros(0)
    low = max(SHORTEST, min(float(part[0]) for part in values))
    high = max(float(part[-1]) for part in values)
    if high < low * 1.05:  # all the same: one bin in the middle of an axis
        low, high = low / 1.5, max(low, high) * 1.5
    return np.geomspace(low, high, BINS + 1)


def _distribution(values: Values, edges: Values) -> dict[str, Any]:
    """`shares` of each bin, and the `curve`: as many seconds as there are shares of requests in `levels`."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    if values.size <= STEPS:
        levels, curve = np.arange(1, values.size + 1) / values.size, values
    else:  # the same steps, and the tail in finer ones
        levels = np.unique(np.concatenate([np.linspace(0, 1, STEPS), [0.995, 0.998, 0.999, 0.9995, 0.9999]]))
        curve = np.quantile(values, levels)
    return {
        "shares": [float(part) for part in counts / values.size],
        "levels": [float(level) for level in levels],
        "curve": [float(value) for value in curve],
        "p50": float(np.quantile(values, 0.5)),
        "p99": float(np.quantile(values, 0.99)),
        "count": int(values.size),
    }
