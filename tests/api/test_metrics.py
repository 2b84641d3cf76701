"""What is observed of requests, and what is read off the engine."""

from __future__ import annotations

from types import SimpleNamespace

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from leoserve.engine.client import EngineRefused
from leoserve.engine.request import EngineStats
from leoserve.metrics import LATENCY, Metrics

from .conftest import Running


def values(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and labels."""
    return {
        sample.name + "".join(f"|{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


async def test_a_request_is_counted_in_every_histogram(server: Running) -> None:
    await server.chat(n=2, stream=True)
    found = values(server.context.metrics)
    for name, count in {
        "time_to_first_token_seconds": 1,
        "inter_token_latency_seconds": 6,
        "time_per_output_token_seconds": 2,
        "e2e_request_latency_seconds": 1,
        "request_queue_time_seconds": 1,
        "request_prefill_time_seconds": 1,
        "request_decode_time_seconds": 1,
        "request_prompt_tokens": 1,
        "request_generation_tokens": 1,
    }.items():
        assert found[f"leoserve_{name}_count"] == count, name
    assert found["leoserve_request_prompt_tokens_sum"] == 26
    assert found["leoserve_request_generation_tokens_sum"] == 8
    assert found["leoserve_requests_finished_total|stop"] == 2


async def test_ends_and_refusals_are_counted_by_reason(server: Running) -> None:
    await server.chat(max_tokens=1)
    await server.chat(temperature=9)
    await server.chat(max_tokens=9999)
    server.engine.error = "broken"
    await server.chat()
    server.engine.refusal = EngineRefused("overloaded", "full")
    await server.chat()
    server.engine.state = "draining"
    await server.chat()
    found = values(server.context.metrics)
    for reason, count in {"length": 1, "error": 1, "stop": 0, "abort": 0}.items():
        assert found[f"leoserve_requests_finished_total|{reason}"] == count, reason
    for reason, count in {"invalid": 1, "never_fits": 1, "overloaded": 1, "unavailable": 1, "unauthorized": 0}.items():
        assert found[f"leoserve_requests_rejected_total|{reason}"] == count, reason


def test_the_engines_totals_are_counters_and_its_state_gauges() -> None:
    metrics = Metrics()
    stats = EngineStats(
        steps=9, running=1, waiting=2, blocks_total=10, blocks_used=5, preemptions=3, prompt_tokens=100,
        cached_tokens=40, generation_tokens=50, prefix_queries=140, prefix_hits=40, step_tokens=7, step_seconds=0.5,
    )  # fmt: skip
    metrics.watch("leo", SimpleNamespace(stats=stats, ready=None))
    found = values(metrics)
    assert found["leoserve_engine_steps_total"] == 9
    assert found["leoserve_prompt_tokens_total"] == 100
    assert found["leoserve_cached_tokens_total"] == 40
    assert found["leoserve_generation_tokens_total"] == 50
    assert found["leoserve_preemptions_total"] == 3
    assert found["leoserve_prefix_cache_queries_total"] == 140
    assert found["leoserve_prefix_cache_hits_total"] == 40
    assert found["leoserve_requests_running"] == 1
    assert found["leoserve_requests_waiting"] == 2
    assert found["leoserve_kv_cache_usage_ratio"] == found["vllm:kv_cache_usage_perc|leo"] == 0.5


def test_the_tokens_of_each_step_are_counted() -> None:
    metrics = Metrics()
    for tokens in (1, 1, 500):
        metrics.step(EngineStats(step_tokens=tokens))
    found = values(metrics)
    assert found["leoserve_step_tokens_count"] == 3
    assert found["leoserve_step_tokens_sum"] == 502


@settings(max_examples=100, deadline=None)
@given(seen=st.lists(st.tuples(st.sampled_from([*LATENCY, 0.0, 0.0017, 61.0, 1e6]), st.integers(1, 3)), max_size=20))
def test_a_histogram_counts_what_the_librarys_own_counts(seen: list[tuple[float, int]]) -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    other = prometheus_client.Histogram("leoserve_inter_token_latency_seconds", "x", buckets=LATENCY, registry=registry)
    for value, times in seen:
        metrics.inter_token.observe(value, times)
        for _ in range(times):
            other.observe(value)
    found = {name: value for name, value in values(metrics).items() if "inter_token" in name}
    wanted = {
        sample.name + "".join(f"|{bound}" for bound in sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert found == pytest.approx(wanted)


def test_two_servers_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(), Metrics()
    first.finished("stop")
    assert values(first)["leoserve_requests_finished_total|stop"] == 1
    assert values(second)["leoserve_requests_finished_total|stop"] == 0
