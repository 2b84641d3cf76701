"""Figures that can be worked out by hand, or by numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leobench.records import RequestRecord, Run, ServerSample, Slo
from leobench.summary import e2e, gaps, good, percentile, summarize, tpot, ttft


def answered(intended: float, *times: float, ended: float | None = None, **more: object) -> RequestRecord:
    """A streamed request that was sent when it was due."""
    fields = {"first": times[0], "last": times[-1], "output_tokens": len(times), "prompt_tokens": 10} | more
    return RequestRecord(0, intended, intended, ended or times[-1], chunk_times=list(times), **fields)


def run_of(*records: RequestRecord, begin: float = 0.0, end: float = 10.0, **more: object) -> Run:
    fields = {"workload": {}, "load": {}, "target": {}, "settings": {}, "versions": {}} | more
    return Run("test", "measured", "2026-01-01T00:00:00+00:00", begin, end, requests=list(records), **fields)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    ordered = sorted(values)
    assert percentile(ordered, q) == pytest.approx(float(np.percentile(ordered, q)), rel=1e-12, abs=1e-9)


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_latencies_count_from_the_intended_arrival() -> None:
    record = RequestRecord(
        0, intended=1.0, sent=3.0, ended=5.0, first=3.5, last=4.5, chunk_times=[3.5, 4.0, 4.5], output_tokens=5
    )
    assert ttft(record) == 2.5
    assert gaps(record) == [0.5, 0.5]
    assert tpot(record) == 0.25, "four tokens after the first in one second, whatever events they came in"
    assert e2e(record) == 4.0


def test_without_streaming_nobody_saw_the_first_token() -> None:
    record = RequestRecord(0, 0.0, 0.0, 2.0, first=2.0, last=2.0, output_tokens=8)
    assert ttft(record) is None
    assert tpot(record) is None
    assert gaps(record) == []
    summary = summarize(run_of(record))
    assert (summary["ttft"], summary["itl"], summary["tpot"]) == (None, None, None)
    assert summary["e2e"]["max"] == 2.0


def test_only_answers_within_the_measured_time_count() -> None:
    warm = answered(2.0, 3.0, warmup=True)
    early, late = answered(0.0, 0.5), answered(9.0, 12.0)
    inside = answered(2.0, 4.0, 6.0)
    summary = summarize(run_of(warm, early, inside, late, begin=1.0, end=11.0))
    assert summary["requests"] == {"ok": 1, "failed": 0, "errors": {}}
    assert summary["throughput"] == {
        "requests_s": 0.1,
        "output_tokens_s": 0.2,
        "prompt_tokens_s": 1.0,
        "total_tokens_s": 1.2,
    }
    assert summary["ttft"]["p50"] == 2.0


def test_errors_count_by_kind_and_not_as_latencies() -> None:
    failed = [
        answered(0.0, 9.0, error="timeout"),
        answered(0.0, 9.0, error="http 429"),
        answered(0.0, 9.0, error="http 429"),
    ]
    summary = summarize(run_of(answered(0.0, 1.0), *failed))
    assert summary["requests"] == {"ok": 1, "failed": 3, "errors": {"http 429": 2, "timeout": 1}}
    assert summary["ttft"]["max"] == 1.0
    assert summary["tokens"] == {"prompt": 10, "output": 1, "cached": 0}


def test_a_good_request_keeps_every_bound() -> None:
    record = answered(0.0, 0.5, 0.6, 0.9)
    assert good(record, Slo())
    assert good(record, Slo(ttft=0.5, itl=0.31, tpot=0.2, e2e=0.9))
    for broken in (Slo(ttft=0.49), Slo(itl=0.29), Slo(tpot=0.19), Slo(e2e=0.89)):
        assert not good(record, broken)
    assert not good(answered(0.0, 0.5, error="timeout"), Slo())
    assert good(answered(0.0, 0.5), Slo(itl=0.001, tpot=0.001)), "one token has no gaps"


def test_goodput_is_of_all_requests_failed_ones_too() -> None:
    records = [answered(0.0, 0.1), answered(0.0, 0.9), answered(0.0, 0.1, error="stream"), answered(0.0, 0.2)]
    assert summarize(run_of(*records, slo=Slo(ttft=0.5)))["goodput"] == {"requests_s": 0.2, "share": 0.5}
    assert summarize(run_of(*records))["goodput"] is None


def test_concurrency_is_what_the_server_had_at_a_time() -> None:
    told = summarize(run_of(answered(0.0, 4.0), answered(2.0, 6.0), answered(4.0, 5.0)))["concurrency"]
    assert told == {"mean": pytest.approx(0.9), "max": 2.0}


def test_servers_add_up_and_counters_grow_through_a_restart() -> None:
    samples = [
        ServerSample(-9.0, generation_tokens=1),
        ServerSample(-1.0, generation_tokens=90),  # the last before the beginning
        ServerSample(0.5, running=1, cache_usage=0.2, generation_tokens=100),
        ServerSample(0.5, running=3, cache_usage=0.4, generation_tokens=1000, url=1),
        ServerSample(5.0, running=2, cache_usage=0.6, generation_tokens=150),
        ServerSample(5.0, running=6, cache_usage=0.8, generation_tokens=20, url=1),  # started anew
        ServerSample(10.5, running=0, cache_usage=0.0, generation_tokens=160),  # the first after the end
        ServerSample(10.5, running=0, cache_usage=0.0, generation_tokens=50, url=1),
        ServerSample(99.0, running=9, cache_usage=0.9, generation_tokens=9999),
    ]
    told = summarize(run_of(answered(0.0, 4.0), samples=samples))["server"]
    assert told["running"] == {"mean": 6.0, "max": 8.0}
    assert told["cache_usage"] == {"mean": pytest.approx(0.5), "max": pytest.approx(0.7)}
    assert told["generation_tokens"] == 70 + 50
    assert "waiting" not in told


def test_a_run_of_nothing_has_figures_of_nothing() -> None:
    summary = summarize(run_of(end=0.0))
    assert summary["throughput"]["requests_s"] == 0.0
    assert summary["e2e"] is None
