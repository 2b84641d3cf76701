"""What a run's records come to: latencies by exact percentiles, throughput, goodput, errors by kind.

Only requests count that were sent after the warm-up and ended within the measured time; latencies are those of requests
that were answered to the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from leobench.records import RequestRecord, Run, ServerSample, Slo

QUANTILES = {"p50": 50.0, "p75": 75.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
COUNTERS = ("prompt_tokens", "generation_tokens", "cached_tokens", "preemptions")


def ttft(record: RequestRecord) -> float | None:
    """Seconds from the intended arrival to the first token. None without streaming: nobody saw when it was there."""
    if record.first is None or not record.chunk_times:
        return None
    return record.first - record.intended


def gaps(record: RequestRecord) -> list[float]:
    """The inter-token latencies: seconds between the events that brought tokens, as the client saw them.

    An event may bring several tokens; `tpot` is the time a token.
    """
    return [later - earlier for earlier, later in pairwise(record.chunk_times)]


def tpot(record: RequestRecord) -> float | None:
    """Seconds a token after the first, by the server's count of tokens. None for fewer than two, or all at once."""
    tokens = record.output_tokens
    if tokens is None or tokens < 2 or len(record.chunk_times) < 2 or record.first is None or record.last is None:
        return None
    return (record.last - record.first) / (tokens - 1)


def e2e(record: RequestRecord) -> float | None:
    """Seconds from the intended arrival to the last byte. None for a request that failed."""
    return record.ended - record.intended if record.error is None else None


def percentile(sorted_values: Sequence[float], q: float) -> float:
    """The exact percentile `q`, 0 to 100, of ascending values, with linear interpolation as numpy's default.

    Raises ValueError without values.
    """
    if len(sorted_values) == 0:
        raise ValueError("there is no percentile of nothing")
    place = (len(sorted_values) - 1) * q / 100
    below = int(place)
    above = min(below + 1, len(sorted_values) - 1)
    low, high = float(sorted_values[below]), float(sorted_values[above])
    return low + (high - low) * (place - below)


def distribution(values: Iterable[float]) -> dict[str, Any] | None:
    """Mean, percentiles, maximum and count of `values`. None without any."""
    ordered = np.sort(np.fromiter(values, dtype=np.float64))
    if not len(ordered):
        return None
    figures = {name: percentile(ordered, q) for name, q in QUANTILES.items()}  # type: ignore[arg-type]
    return {"mean": float(ordered.mean()), **figures, "max": float(ordered[-1]), "count": len(ordered)}


def measured(run: Run) -> list[RequestRecord]:
    """The requests that count."""
    return [
        record
        for record in run.requests
        if not record.warmup and run.measured_from <= record.ended <= run.measured_until
    ]


def good(record: RequestRecord, slo: Slo) -> bool:
    """Whether a request was answered and kept every bound. A first token that nobody saw keeps no bound; a bound on
    what an answer of one token does not have, gaps and time a token, is kept."""
    if record.error is not None:
        return False
    between = sorted(gaps(record))
    first = ttft(record)
    each = tpot(record)
    return (
        (slo.ttft is None or (first is not None and first <= slo.ttft))
        and (slo.itl is None or not between or percentile(between, 99) <= slo.itl)
        and (slo.tpot is None or each is None or each <= slo.tpot)
        and (slo.e2e is None or record.ended - record.intended <= slo.e2e)
    )


def summarize(run: Run) -> dict[str, Any]:
    """Every figure of a run, in seconds, tokens and their quotients; the keys stand in the code below."""
    requests = measured(run)
    answered = [record for record in requests if record.error is None]
    duration = run.measured_until - run.measured_from
    errors = Counter(record.error for record in requests if record.error is not None)
    prompt, output, cached = (
        sum(getattr(record, name) or 0 for record in answered)
        for name in ("prompt_tokens", "output_tokens", "cached_tokens")
    )
    over = duration if duration > 0 else math.inf  # in no time at all nothing is a rate
    kept = sum(good(record, run.slo) for record in requests) if run.slo is not None else None
    return {
        "duration": duration,
        "requests": {"ok": len(answered), "failed": errors.total(), "errors": dict(errors.most_common())},
        "throughput": {
            "requests_s": len(answered) / over,
            "output_tokens_s": output / over,
            "prompt_tokens_s": prompt / over,
            "total_tokens_s": (prompt + output) / over,
        },
        "goodput": None
        if kept is None
        else {"requests_s": kept / over, "share": kept / len(requests) if requests else 0.0},
        "ttft": distribution(value for record in answered if (value := ttft(record)) is not None),
        "itl": distribution(gap for record in answered for gap in gaps(record)),
        "tpot": distribution(value for record in answered if (value := tpot(record)) is not None),
        "e2e": distribution(value for record in answered if (value := e2e(record)) is not None),
        "tokens": {"prompt": prompt, "output": output, "cached": cached},
        "concurrency": concurrency(requests, run.measured_from, run.measured_until),
        "server": server(run.samples, run.measured_from, run.measured_until),
    }


def concurrency(requests: Sequence[RequestRecord], begin: float, end: float) -> dict[str, float]:
    """How many requests the server had at a time, mean and most, between two moments."""
    changes = sorted(
        change for record in requests for change in ((max(record.sent, begin), 1), (min(record.ended, end), -1))
    )
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    busy = sum(min(record.ended, end) - max(record.sent, begin) for record in requests)
    return {"mean": busy / (end - begin) if end > begin else 0.0, "max": float(most)}


def server(samples: Sequence[ServerSample], begin: float, end: float) -> dict[str, Any]:
    """Means and maxima of what the servers said, all URLs together, and by how much their counters grew.

    Empty where no server said anything. Samples of several URLs were taken at the same `time`. Counters are read from
    the last sample before the beginning to the first after the end, between which everything happened.
    """
    ordered = sorted(samples, key=lambda sample: sample.time)
    before = max((sample.time for sample in ordered if sample.time <= begin), default=begin)
    after = min((sample.time for sample in ordered if sample.time >= end), default=end)
    inside = [sample for sample in ordered if begin <= sample.time <= end]
    moments = [list(group) for _, group in groupby(inside, lambda sample: sample.time)]
    told: dict[str, Any] = {}
    for name in ("running", "waiting", "cache_usage"):
        values = []
        for moment in moments:
            known = [value for sample in moment if (value := getattr(sample, name)) is not None]
            if known:
                values.append(sum(known) / (len(known) if name == "cache_usage" else 1))
        if values:
            told[name] = {"mean": sum(values) / len(values), "max": max(values)}
    for name in COUNTERS:
        counted = [sample for sample in ordered if before <= sample.time <= after]
        growth = [grown for url in {s.url for s in counted} if (grown := _growth(counted, name, url)) is not None]
        if growth:
            told[name] = sum(growth)
    return told


def _growth(samples: Iterable[ServerSample], name: str, url: int) -> float | None:
    """From the first sample to the last; a counter that fell was started anew, and counts from 0."""
    values = [value for sample in samples if sample.url == url and (value := getattr(sample, name)) is not None]
    if len(values) < 2:
        return None
    return float(sum(later - earlier if later >= earlier else later for earlier, later in pairwise(values)))
