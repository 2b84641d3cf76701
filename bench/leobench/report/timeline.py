"""What happened when: arrivals and answers, what ran and waited, how full the cache was, how long first tokens took.

All in seconds since the run began, warm-up included, so that one sees whether it was long enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from leobench.records import RequestRecord, Run, ServerSample
from leobench.summary import ttft

SLICES = 150  # of a timeline, at most
DOTS = 3000  # requests shown one by one, at most
WIDTHS = [base * 10**power for power in range(-3, 5) for base in (1, 2, 5)]

Values = npt.NDArray[np.float64]


def timeline(run: Run) -> dict[str, Any]:
    """`width` and `starts` of the slices, rates and levels in each of them, and the dots of single requests."""
    until = max([run.measured_until, *(record.ended for record in run.requests)])
    width = next((width for width in WIDTHS if until / width <= SLICES), WIDTHS[-1])
    edges = np.arange(0, until + width, width)
    found: dict[str, Any] = {
        "width": width,
        "until": until,
        "measured": [run.measured_from, run.measured_until],
        "starts": [float(edge) for edge in edges[:-1]],
        "arrived": _rates([record.intended for record in run.requests], edges),
        "finished": _rates([record.ended for record in run.requests if record.error is None], edges),
        "failed": _rates([record.ended for record in run.requests if record.error is not None], edges),
        "output_tokens": _token_rates(run.requests, edges),
        "in_flight": _in_flight(run.requests, edges),
        "server": _server(run.samples),
    }
    return found | _dots(run.requests)


def _rates(times: list[float], edges: Values) -> list[float]:
    counts, _ = np.histogram(np.asarray(times, dtype=np.float64), edges)
    return [float(count) for count in counts / np.diff(edges)]


def _token_rates(requests: list[RequestRecord], edges: Values) -> list[float]:
    """Tokens by the server's usage, shared out evenly among the events that brought them."""
    times: list[float] = []
    weights: list[float] = []
    for record in requests:
        if record.error is None and record.output_tokens:
            events = record.chunk_times or [record.ended]
            times.extend(events)
            weights.extend([record.output_tokens / len(events)] * len(events))
    counts, _ = np.histogram(np.asarray(times, dtype=np.float64), edges, weights=np.asarray(weights, dtype=np.float64))
    return [float(count) for count in counts / np.diff(edges)]


def _in_flight(requests: list[RequestRecord], edges: Values) -> list[float]:
    """Requests that were sent and not answered, the mean of each slice."""
    seconds = np.zeros(len(edges))
    for times, sign in (([record.sent for record in requests], 1.0), ([record.ended for record in requests], -1.0)):
        begun = np.sort(np.asarray(times, dtype=np.float64))
        passed = np.searchsorted(begun, edges)
        sums = np.concatenate([[0.0], np.cumsum(begun)])[passed]
        seconds += sign * (passed * edges - sums)  # of all requests since each began, up to each edge
    return [float(max(0.0, value)) for value in np.diff(seconds) / np.diff(edges)]


def _server(samples: list[ServerSample]) -> dict[str, Any]:
    """Running and waiting of all servers together, the fullest cache, preemptions since the run began."""
    times = sorted({sample.time for sample in samples})
    urls = sorted({sample.url for sample in samples})

    def levels(name: str, joined: Callable[[list[float]], float], since: bool = False) -> list[float | None]:
        held = [_held([sample for sample in samples if sample.url == url], name, times, since) for url in urls]
        rows = [[value for value in row if value is not None] for row in zip(*held, strict=True)]
        return [joined(row) if row else None for row in rows]

    found: dict[str, list[Any]] = {
        "times": times,
        "running": levels("running", sum),
        "waiting": levels("waiting", sum),
        "cache_usage": levels("cache_usage", max),
        "preemptions": levels("preemptions", sum, since=True),
    }
    return {name: row for name, row in found.items() if any(value is not None for value in row)}


def _held(samples: list[ServerSample], name: str, times: list[float], since: bool) -> list[float | None]:
    """One server's last known value at each time; a counter counts from its first value."""
    known = [(sample.time, float(value)) for sample in samples if (value := getattr(sample, name)) is not None]
    start = known[0][1] if known and since else 0.0
    held: list[float | None] = []
    position = 0
    for time in times:
        while position < len(known) and known[position][0] <= time:
            position += 1
        held.append(known[position - 1][1] - start if position else None)
    return held


def _dots(requests: list[RequestRecord]) -> dict[str, Any]:
    """Single requests: `dots` of (intended, seconds to the first token, number of its group), and `errors`.

    Where there are too many, every so-manyth is shown, and the slowest ones all the same: what is rare and slow is
    what people look for.
    """
    groups = sorted({record.group for record in requests})
    dots: list[tuple[float, float, int]] = [
        (record.intended, seconds, groups.index(record.group))
        for record in requests
        if record.error is None and (seconds := ttft(record)) is not None
    ]
    total = len(dots)
    if total > DOTS:
        slowest = sorted(range(total), key=lambda at: dots[at][1])[-DOTS // 10 :]
        kept = set(slowest) | set(range(0, total, -(-total // (DOTS - len(slowest)))))
        dots = [dot for at, dot in enumerate(dots) if at in kept]
    failed = [record for record in requests if record.error is not None]
    errors = [[record.intended, record.error] for record in failed[: DOTS // 3]]
    return {"groups": groups, "dots": dots, "of_dots": total, "errors": errors, "of_errors": len(failed)}
