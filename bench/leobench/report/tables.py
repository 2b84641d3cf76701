"""The tables of the page: percentiles, errors, the client's health, settings and versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from leobench.records import Run
from leobench.report.headline import BOUNDS
from leobench.report.markup import table
from leobench.report.shown import Shown
from leobench.report.wording import MISSING, duration, number, share

LEVELS = ["mean", "p50", "p75", "p90", "p95", "p99", "p999", "max"]
HEADS = ["mean", "p50", "p75", "p90", "p95", "p99", "p99.9", "max"]
LONG = 10.0  # seconds from which a row is in seconds, not milliseconds


def percentiles(entries: Sequence[Shown]) -> str:
    """Every latency of every run. A row has one unit, so that its figures can be compared by eye."""
    rows = []
    for name, title in BOUNDS.items():
        for entry in entries:
            found = entry.summary[name]
            if found:
                label = f"{title}, {entry.label}" if len(entries) > 1 else title
                rows.append(_percentiles(label, found))
    return table("Latencies of the answered requests", ["", "unit", *HEADS, "values"], rows)


def _percentiles(label: str, found: dict[str, float]) -> list[str]:
    unit, factor = ("s", 1.0) if found["max"] >= LONG else ("ms", 1000.0)
    digits = 2 if found["p50"] * factor < 100 else 1
    return [label, unit, *(f"{found[level] * factor:,.{digits}f}" for level in LEVELS), f"{found['count']:,}"]


def errors(entries: Sequence[Shown]) -> str:
    """How many of each kind, with what the first of them said; empty where nothing failed."""
    kinds = sorted({kind for entry in entries for kind in entry.summary["requests"]["errors"]})
    if not kinds:
        return ""
    rows = []
    for kind in kinds:
        amounts = [f"{entry.summary['requests']['errors'].get(kind, 0):,}" for entry in entries]
        rows.append([kind, *amounts, _said(entries, kind)])
    return table("Errors by kind", ["", *(entry.label for entry in entries), "the first of them said"], rows)


def _said(entries: Sequence[Shown], kind: str) -> str:
    records = (record for entry in entries for record in entry.run.requests)
    return next((record.message for record in records if record.error == kind and record.message), MISSING)


HEALTH: dict[str, Callable[[Run], str]] = {
    "event loop late, p99": lambda run: duration(run.client.loop_lag_p99),
    "event loop late, most": lambda run: duration(run.client.loop_lag_max),
    "CPU, of one core": lambda run: share(run.client.cpu),
    "sent late, p99": lambda run: duration(run.client.late_p99),
}


def tokens_and_client(entries: Sequence[Shown]) -> str:
    """What was asked and answered, and whether the client kept up."""
    rows = [
        ["measured", *(duration(entry.summary["duration"]) for entry in entries)],
        ["prompt tokens", *(number(entry.summary["tokens"]["prompt"]) for entry in entries)],
        ["of them cached", *(number(entry.summary["tokens"]["cached"]) for entry in entries)],
        ["output tokens", *(number(entry.summary["tokens"]["output"]) for entry in entries)],
    ]
    measured = [entry for entry in entries if entry.run.kind == "measured"]
    if len(measured) == len(entries):  # a simulated client is never late
        rows += [[name, *(said(entry.run) for entry in entries)] for name, said in HEALTH.items()]
    return table("Tokens, and the client's own health", ["", *(entry.label for entry in entries)], rows)


def settings(entries: Sequence[Shown]) -> str:
    """Everything that could make the run again. Rows that differ between runs come first."""
    columns = [_settings(entry.run) for entry in entries]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, MISSING) for column in columns)] for name in names]
    differ = [[f"≠ {name}", *cells] for name, *cells in rows if len(set(cells)) > 1]
    same = [[name, cells[0]] for name, *cells in rows if len(set(cells)) == 1]
    if len(entries) == 1:
        return table("Settings and versions", ["", entries[0].label], same, words=True)
    title = "Settings and versions that the runs share"
    parts = [table("What differs between the runs", ["", *(entry.label for entry in entries)], differ, words=True)]
    return "".join([*(parts if differ else []), table(title, ["", "every run"], same, words=True)])


def _settings(run: Run) -> dict[str, str]:
    """Flat, with dotted names: 'load.pattern', 'versions.python'."""
    found = {"kind": run.kind, "started": run.started}
    for section in ("workload", "load", "target", "versions", "settings"):
        found |= {f"{section}.{name}": plain(value) for name, value in getattr(run, section).items()}
    return found


def plain(value: Any) -> str:
    """A setting as text, without the quotes of JSON where they say nothing."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
