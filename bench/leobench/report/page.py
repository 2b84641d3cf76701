"""The page: markup, data, style and script in one file that asks nothing of any network.

Its content security policy allows this very script and this very style, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from leobench.records import Run, Sweep
from leobench.report import headline, tables
from leobench.report.curves import curves, points
from leobench.report.distributions import distributions
from leobench.report.markup import around, element
from leobench.report.shown import Shown, shown
from leobench.report.timeline import timeline
from leobench.slo import bound

SCRIPTS = ("charts.js", "figures.js", "comparison.js", "timeline.js")  # the last one draws
ASSETS = files("leobench.report") / "assets"
# What a script element must not contain, and the two line breaks that JSON allows and old scripts do not.
ESCAPES = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"})


def page(results: Sequence[tuple[str, Run | Sweep]], title: str) -> str:
    """The HTML of results that come with the names of their files."""
    entries = shown(results)
    chosen = _chosen(results, entries)
    data = {
        "runs": [_run(entry, results, place in chosen) for place, entry in enumerate(entries)],
        "points": points(entries),
        "curves": curves(results, entries),
        "distributions": distributions(entries),
        "slo": _slo(entries),
        "kept": _kept(results),
    }
    body = "".join(
        [
            _simulated(entries),
            headline.warnings(entries),
            headline.verdicts(results, entries),
            headline.cards(entries[0]) if len(entries) == 1 else headline.overview(entries),
            around("div", [], id="charts"),
            element("h2", "Figures"),
            tables.percentiles(entries),
            tables.errors(entries),
            tables.tokens_and_client(entries),
            tables.settings(entries),
        ]
    )
    return document(title, _about(entries), body, data)


def document(title: str, about: str, body: str, data: dict[str, Any]) -> str:
    """A whole page around `body`, which is HTML; all else is plain text and data."""
    style = (ASSETS / "style.css").read_text(encoding="utf-8")
    script = "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    frame = (ASSETS / "page.html").read_text(encoding="utf-8")
    parts = {
        "POLICY": escape(policy),
        "TITLE": escape(title),
        "ABOUT": escape(about),
        "STYLE": style,
        "BODY": body,
        "DATA": embedded(data),
        "SCRIPT": script,
    }
    # Cut once, so that no part's text is taken for a place of another part.
    pieces = frame.split("@@")
    return "".join(piece if place % 2 == 0 else parts[piece] for place, piece in enumerate(pieces))


def embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever names and messages hold."""
    text = json.dumps(_rounded(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(ESCAPES)


def _rounded(data: Any) -> Any:
    """The same with six digits that count, more than a chart can show."""
    if isinstance(data, dict):
        return {name: _rounded(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_rounded(value) for value in data]
    return float(f"{data:.6g}") if isinstance(data, float) else data


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _chosen(results: Sequence[tuple[str, Run | Sweep]], entries: Sequence[Shown], most: int = 6) -> set[int]:
    """The runs whose distributions are shown at first: all, or as many as can be told apart, spread evenly."""
    if len(entries) <= most:
        return set(range(len(entries)))
    return {round(part * (len(entries) - 1) / (most - 1)) for part in range(most)}


def _run(entry: Shown, results: Sequence[tuple[str, Run | Sweep]], chosen: bool) -> dict[str, Any]:
    """A run's name, looks and timeline. The runs of a lone sweep go from light to dark."""
    alone = len(results) == 1 and isinstance(results[0][1], Sweep)
    ramp = None
    if alone and isinstance(results[0][1], Sweep):
        values = sorted(results[0][1].values)
        ramp = values.index(entry.value) / max(1, len(values) - 1) if entry.value is not None else 0.0
    return {
        "label": entry.label,
        "simulated": entry.run.kind == "simulated",
        "curve": entry.curve,
        "ramp": ramp,
        "chosen": chosen,
        "timeline": timeline(entry.run),
    }


def _slo(entries: Sequence[Shown]) -> dict[str, float]:
    """The bounds that every run has in common."""
    found = [entry.run.slo for entry in entries]
    first = found[0]
    if first is None or any(slo != first for slo in found):
        return {}
    values = {name: getattr(first, name) for name in ("ttft", "itl", "e2e")}
    return {name: value for name, value in values.items() if value is not None}


def _kept(results: Sequence[tuple[str, Run | Sweep]]) -> dict[str, list[Any]]:
    """What the search of a lone sweep bounded, by quantity: the figure and its most, in seconds."""
    if len(results) != 1 or not isinstance(results[0][1], Sweep):
        return {}
    found = [bound(text) for text in results[0][1].search.get("keep", [])]
    return {each.quantity: [each.figure, each.most] for each in found}


def _simulated(entries: Sequence[Shown]) -> str:
    simulated = [entry.label for entry in entries if entry.run.kind == "simulated"]
    if not simulated:
        return ""
    which = "Simulated" if len(simulated) == len(entries) else f"Simulated: {', '.join(simulated)}"
    return element(
        "p",
        f"{which}. No server answered: times come from a cost model, and are as good as it is.",
        kind="simulated",
        role="note",
    )


def _about(entries: Sequence[Shown]) -> str:
    """The line under the title: model, workload, load and time, as far as every run has the same."""
    runs = [entry.run for entry in entries]
    parts: list[list[Any]] = [
        [run.target.get("model") for run in runs],
        [run.workload.get("name") for run in runs],
        [run.load.get("pattern") for run in runs],
        [run.started for run in runs],
    ]
    common = [str(part[0]) for part in parts if part[0] and all(each == part[0] for each in part)]
    return " · ".join([*([f"{len(runs)} runs"] if len(runs) > 1 else []), *common])
