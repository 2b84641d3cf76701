"""What is put side by side: the runs of each label, and what makes a comparison of them unfair."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leobench.records import Run, Sweep, read

Key = float | None  # what a sweep set for a run; None for a run by itself


class Incomparable(ValueError):
    """These files cannot be put side by side. One line that says why."""


@dataclass(frozen=True, slots=True)
class Side:
    """Runs that are repetitions of each other: several under a key give the spread between them."""

    label: str
    axis: str | None = None  # of a sweep
    runs: dict[Key, list[Run]] = field(default_factory=dict)


def sides(files: Sequence[Path], labelled: Sequence[tuple[str, list[Path]]]) -> list[Side]:
    """At least two. Files without a label are one side where their results have the same name, as long as that leaves
    two sides; or else each file is a side. Raises Incomparable and Unreadable.
    """
    results = [(file, read(file)) for file in files]
    named: dict[str, list[Run | Sweep]] = {}
    for _, result in results:
        named.setdefault(result.name, []).append(result)
    if len(named) == 1 and len(results) > 1:
        named = {str(file): [result] for file, result in results}
    for label, paths in labelled:
        named.setdefault(label, []).extend(read(path) for path in paths)
    if len(named) < 2:
        raise Incomparable("it takes two sides to compare")
    return [_side(label, results) for label, results in named.items()]


def _side(label: str, results: Iterable[Run | Sweep]) -> Side:
    axes = {result.axis if isinstance(result, Sweep) else None for result in results}
    if len(axes) > 1:
        raise Incomparable(f"{label}: runs and sweeps, or sweeps over different quantities, are not repetitions")
    side = Side(label, axes.pop())
    for result in results:
        pairs = [(None, result)] if isinstance(result, Run) else zip(result.values, result.runs, strict=True)
        for key, run in pairs:
            side.runs.setdefault(key, []).append(run)
    return side


def common(first: Side, other: Side) -> list[Key]:
    """What both sides have runs at, ascending. Raises Incomparable where there is nothing."""
    if first.axis != other.axis:
        raise Incomparable(f"{first.label} and {other.label}: a run and a sweep, or sweeps over different quantities")
    keys = [key for key in first.runs if key in other.runs]
    if not keys:
        raise Incomparable(f"{first.label} and {other.label}: no value of the sweeps is in both")
    return sorted(keys, key=lambda key: key or 0.0)


def unfair(first: Sequence[Run], other: Sequence[Run]) -> list[str]:
    """What else differs than what is compared, or makes a side doubtful: one line each."""
    settings = [[_conditions(run) for run in side] for side in (first, other)]
    names = sorted({name for side in settings for run in side for name in run})
    lines = []
    for name in names:
        seen = [sorted({run.get(name, "nothing") for run in side}) for side in settings]
        if seen[0] != seen[1]:
            lines.append(f"{name} differs: {', '.join(seen[0])} against {', '.join(seen[1])}")
    lengths = [[run.measured_until - run.measured_from for run in side] for side in (first, other)]
    if max(map(max, lengths)) > 1.25 * min(map(min, lengths)):
        lines.append("the runs were not measured for equally long")
    for side in (first, other):
        lines += [f"{run.name}: {line}" for run in side for line in run.client.warnings]
    return list(dict.fromkeys(lines))


def _conditions(run: Run) -> dict[str, str]:
    """What must be the same on both sides, by dotted names."""
    target = {name: value for name, value in run.target.items() if name != "urls"}
    sections: dict[str, dict[str, Any]] = {"workload": run.workload, "load": run.load, "target": target}
    found = {f"{section}.{name}": _text(value) for section, part in sections.items() for name, value in part.items()}
    bounds = {name: getattr(run.slo, name) for name in ("ttft", "itl", "tpot", "e2e")} if run.slo else {}
    return found | {"kind": run.kind} | {f"slo.{name}": f"{value:g} s" for name, value in bounds.items() if value}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
