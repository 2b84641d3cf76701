"""The runs that a page shows: each with a label that is its own, its summary and its colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leobench.records import Run, Sweep
from leobench.summary import summarize


@dataclass(frozen=True, slots=True)
class Shown:
    """One run. `curve` is the number of the result that it came from, `value` what a sweep set for it."""

    run: Run
    label: str
    curve: int
    value: float | None
    summary: dict[str, Any]


def shown(results: Sequence[tuple[str, Run | Sweep]]) -> list[Shown]:
    """Every run of results that come with the name of their file, in order."""
    names = Counter(result.name for _, result in results)
    entries = []
    for curve, (file, result) in enumerate(results):
        name = result.name if names[result.name] == 1 else f"{result.name} ({file})"
        if isinstance(result, Run):
            entries.append(Shown(result, name, curve, None, summarize(result)))
            continue
        prefix = f"{name}, " if len(results) > 1 else ""
        for value, run in zip(result.values, result.runs, strict=True):
            label = f"{prefix}{at(result.axis, value)}"
            entries.append(Shown(run, label, curve, value, summarize(run)))
    return entries


def at(axis: str, value: float) -> str:
    """What a sweep set for a run, in words: '8 at once' or '2.5 requests/s'."""
    return f"{value:g} at once" if axis == "concurrency" else f"{value:g} requests/s"
