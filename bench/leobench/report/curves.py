"""Throughput against latency: what a chart of several runs is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leobench.records import Run, Sweep
from leobench.report.shown import Shown


def points(entries: Sequence[Shown]) -> list[dict[str, Any]]:
    """One a run: its rates (per second), and the median and 99th percentile of its latencies (seconds)."""
    return [_point(entry) for entry in entries]


def _point(entry: Shown) -> dict[str, Any]:
    summary = entry.summary
    goodput = summary["goodput"]
    return {
        "value": entry.value,
        "output_tokens": summary["throughput"]["output_tokens_s"],
        "requests": summary["throughput"]["requests_s"],
        "goodput": goodput["requests_s"] if goodput else None,
        "good_share": goodput["share"] if goodput else None,
        **{name: _middle_and_tail(summary[name]) for name in ("ttft", "itl", "e2e")},
    }


def _middle_and_tail(percentiles: dict[str, float] | None) -> list[float] | None:
    return [percentiles["p50"], percentiles["p99"]] if percentiles else None


def curves(results: Sequence[tuple[str, Run | Sweep]], entries: Sequence[Shown]) -> list[dict[str, Any]]:
    """Each sweep, with its runs in the order of what it set: places in `entries`."""
    found = []
    for curve, (_, result) in enumerate(results):
        if isinstance(result, Sweep):
            places = [place for place, entry in enumerate(entries) if entry.curve == curve]
            places.sort(key=lambda place: entries[place].value or 0.0)
            found.append({"label": result.name, "axis": result.axis, "runs": places})
    return found
