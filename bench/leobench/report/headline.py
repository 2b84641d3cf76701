"""The top of the page: what to beware of, and the few figures that matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leobench.records import Run, Slo, Sweep
from leobench.report.markup import around, element, table
from leobench.report.shown import Shown, at
from leobench.report.wording import MISSING, count, duration, number, share

FEW = 100  # requests below which a 99th percentile is one request's luck
BOUNDS = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "end to end"}


def warnings(entries: Sequence[Shown]) -> str:
    """One list of everything that makes the numbers less than they seem; empty HTML where there is nothing."""
    several = len(entries) > 1
    lines = [f"{entry.label}: {line}" if several else line for entry in entries for line in _warnings(entry)]
    if not lines:
        return ""
    title = element("h2", "Before you trust these numbers")
    items = [element("li", line) for line in lines]
    return around("section", [title, around("ul", items)], kind="warnings", role="note")


def _warnings(entry: Shown) -> list[str]:
    requests = entry.summary["requests"]
    ok, failed = requests["ok"], requests["failed"]
    lines = [line[:1].upper() + line[1:] for line in entry.run.client.warnings]
    if failed:
        part = share(failed / (ok + failed))
        lines.append(f"{count(failed, 'request')} ({part}) failed; latencies are of those that were answered.")
    if ok < FEW:
        lines.append(f"{count(ok, 'answer')} in the measured time: too few for a 99th percentile.")
    return lines


def cards(entry: Shown) -> str:
    """A single run's figures."""
    summary, slo = entry.summary, entry.run.slo
    rates, requests = summary["throughput"], summary["requests"]
    failed = requests["failed"]
    kinds = ", ".join(f"{kind}: {amount:,}" for kind, amount in requests["errors"].items())
    goodput = summary["goodput"]
    items = [
        _card("Output", number(rates["output_tokens_s"]), "tokens/s", f"{number(rates['prompt_tokens_s'])} of prompts"),
        _card("Answers", number(rates["requests_s"]), "/s", f"{_mean_concurrency(summary)} at once"),
        *(_latency_card(BOUNDS[name], summary[name]) for name in ("ttft", "itl", "e2e")),
        _card("Goodput", number(goodput["requests_s"]), "/s", f"{share(goodput['share'])} within {bounds(slo)}")
        if goodput and slo
        else _card("Goodput", MISSING, "", "no bounds were set"),
        _card("Errors", f"{failed:,}", f"of {requests['ok'] + failed:,}", kinds or "every request was answered"),
    ]
    return around("ul", items, kind="cards")


def _card(name: str, value: str, unit: str, note: str) -> str:
    figure = around("p", [element("b", value), element("span", f" {unit}")], kind="figure")
    return around("li", [element("h3", name), figure, element("p", note)])


def _latency_card(name: str, percentiles: dict[str, float] | None) -> str:
    if percentiles is None:
        return _card(name, MISSING, "", "no answers" if name == BOUNDS["e2e"] else "no answer was streamed")
    value, _, unit = duration(percentiles["p99"]).partition(" ")
    return _card(f"{name}, p99", value, unit, f"median {duration(percentiles['p50'])}")


def _mean_concurrency(summary: dict[str, Any]) -> str:
    return number(summary["concurrency"]["mean"])


def bounds(slo: Slo) -> str:
    """An SLO in words: 'TTFT ≤ 500 ms, ITL ≤ 50 ms'."""
    set_ = [(name, getattr(slo, key)) for key, name in BOUNDS.items()]
    return ", ".join(f"{name} ≤ {duration(value)}" for name, value in set_ if value is not None)


HEAD = [
    "",
    "output tokens/s",
    "answers/s",
    "TTFT p50",
    "TTFT p99",
    "ITL p50",
    "ITL p99",
    "e2e p50",
    "e2e p99",
    "goodput/s",
    "good",
    "failed",
]


def overview(entries: Sequence[Shown]) -> str:
    """Several runs' figures, a row each."""
    return table("The runs at a glance", HEAD, [_row(entry) for entry in entries])


def _row(entry: Shown) -> list[str]:
    summary = entry.summary
    rates, goodput = summary["throughput"], summary["goodput"]
    latencies = []
    for name in ("ttft", "itl", "e2e"):
        percentiles = summary[name] or {}
        latencies += [duration(percentiles.get("p50")), duration(percentiles.get("p99"))]
    good = [number(goodput["requests_s"]), share(goodput["share"])] if goodput else [MISSING, MISSING]
    failed = f"{summary['requests']['failed']:,}"
    return [
        entry.label,
        number(rates["output_tokens_s"]),
        number(rates["requests_s"]),
        *latencies,
        *good,
        failed,
    ]


def verdicts(results: Sequence[tuple[str, Run | Sweep]], entries: Sequence[Shown]) -> str:
    """A sentence a sweep: where it was fastest, and the most that kept the bounds."""
    lines = [
        _verdict(result, [entry for entry in entries if entry.curve == curve])
        for curve, (_, result) in enumerate(results)
        if isinstance(result, Sweep)
    ]
    return "".join(element("p", line, kind="verdict") for line in lines if line)


def _verdict(sweep: Sweep, entries: Sequence[Shown]) -> str:
    if not entries:
        return ""
    best = max(entries, key=lambda entry: entry.summary["throughput"]["output_tokens_s"])
    rate = number(best.summary["throughput"]["output_tokens_s"])
    return f"{sweep.name}: most output {rate} tokens/s at {at(sweep.axis, best.value or 0)}. {_most(sweep, entries)}"


def _most(sweep: Sweep, entries: Sequence[Shown]) -> str:
    """The highest value that kept bounds: those of a search, or else those of an SLO, by 99% of the requests."""
    if sweep.search:
        kept, highest, broken = (
            " and ".join(sweep.search["keep"]),
            sweep.search["highest"],
            sweep.search["lowest_broken"],
        )
        if highest is None:
            return f"Not even {at(sweep.axis, sweep.search['low'])} kept {kept}."
        beyond = f"; {at(sweep.axis, broken)} did not" if broken is not None else ", the most that was tried"
        return f"With {at(sweep.axis, highest)} it kept {kept}{beyond}."
    slo = entries[0].run.slo
    if slo is None:
        return ""
    kept_by = [entry for entry in entries if (good := entry.summary["goodput"]) and good["share"] >= 0.99]
    if not kept_by:
        return f"Nowhere did 99% of the requests keep {bounds(slo)}."
    most = max(kept_by, key=lambda entry: entry.value or 0)
    last = ", the most that was tried" if most.value == max(sweep.values) else ""
    return f"The most at which 99% of the requests kept {bounds(slo)}: {at(sweep.axis, most.value or 0)}{last}."
