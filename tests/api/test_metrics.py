"""What is observed of requests, and what is read off the engine."""

from __future__ import annotations

import asyncio
import logging
import os
from types import SimpleNamespace

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from leoserve.api.catalog import FAULTS
from leoserve.engine.client import EngineRefused
from leoserve.engine.request import EngineStats, Ready
from leoserve.metrics import LATENCY, STATUSES, Metrics
from tests.conftest import PATIENCE

from .conftest import Running, Start
from .test_answer import leave


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
    ready = Ready(
        max_model_len=256, block_size=16, num_blocks=10, vocab_size=1024, max_num_seqs=8, dtype="float32", device="cpu",
        attention="double", weight_bytes=0,
    )  # fmt: skip
    stats = EngineStats(
        steps=9, running=1, waiting=2, blocks_total=10, blocks_used=5, preemptions=3, prompt_tokens=100,
        cached_tokens=40, generation_tokens=50, prefix_queries=140, prefix_hits=40, step_tokens=7, step_seconds=0.5,
    )  # fmt: skip
    metrics.watch("leo", SimpleNamespace(stats=stats, ready=ready, state="ready", restarts=4, pid=None), 20)
    found = values(metrics)
    assert found["leoserve_engine_restarts_total"] == 4
    assert found["leoserve_engine_steps_total"] == 9
    assert found["leoserve_prompt_tokens_total"] == 100
    assert found["leoserve_cached_tokens_total"] == 40
    assert found["leoserve_generation_tokens_total"] == 50
    assert found["leoserve_preemptions_total"] == 3
    assert found["leoserve_prefix_cache_queries_total"] == 140
    assert found["leoserve_prefix_cache_hits_total"] == 40
    assert (found["leoserve_requests_running"], found["leoserve_requests_running_limit"]) == (1, 8)
    assert (found["leoserve_requests_waiting"], found["leoserve_requests_waiting_limit"]) == (2, 20)
    assert (found["leoserve_kv_blocks_used"], found["leoserve_kv_blocks"]) == (5, 10)
    assert found["leoserve_kv_cache_usage_ratio"] == found["vllm:kv_cache_usage_perc|leo"] == 0.5


def test_an_engine_that_has_not_computed_yet_tells_its_cache(server: Running) -> None:
    assert values(server.context.metrics)["leoserve_kv_blocks"] == 64


async def test_ready_is_what_the_route_says(server: Running) -> None:
    for state, ready in (("ready", 1), ("restarting", 0), ("draining", 0)):
        server.engine.state = state
        assert values(server.context.metrics)["leoserve_ready"] == ready
        assert (await server.http.get("/ready")).is_success == bool(ready)


async def test_requests_are_counted_by_the_status_they_end_with(server: Running) -> None:
    for path in ("/health", "/ready", "/metrics"):
        await server.http.get(path)
    await server.chat()
    await server.chat(temperature=9)
    await server.http.get("/nowhere")
    server.engine.error = "broken"
    await server.chat()
    server.engine.error_after = 1  # in the midst of a stream, whose response has status 200
    await server.chat(stream=True)
    await server.http.post("/v1/responses", json={"model": "leo", "input": "Hallo", "stream": True})
    server.engine.refusal = EngineRefused("overloaded", "full")
    await server.chat()
    found = values(server.context.metrics)
    counted = {name[-3:]: count for name, count in found.items() if name.startswith("leoserve_responses_total")}
    assert {status: count for status, count in counted.items() if count} == {
        "200": 1, "400": 1, "404": 1, "429": 1, "500": 3,
    }  # fmt: skip


async def test_a_client_that_leaves_a_stream_is_counted_and_no_failure(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.pause_after = 1
    await leave(server, "/v1/completions", {"model": "leo", "prompt": "Hallo", "stream": True}, after="first")
    async with asyncio.timeout(PATIENCE):
        while not values(server.context.metrics)["leoserve_responses_total|499"]:
            await asyncio.sleep(0)
    assert not [line for line in caplog.records if line.levelno >= logging.ERROR]


def test_every_status_an_error_can_have_is_there_from_the_start() -> None:
    assert {fault.status for fault in FAULTS} <= set(STATUSES)
    assert all(values(Metrics())[f"leoserve_responses_total|{status}"] == 0 for status in STATUSES)


async def test_connections_are_counted_while_they_are_open(start: Start) -> None:
    server = await start(max_connections=7)
    before = (await scraped(server))["leoserve_connections"]
    _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    assert await scraped(server) == {"leoserve_connections": before + 1, "leoserve_connections_limit": 7}
    writer.close()
    async with asyncio.timeout(PATIENCE):
        while (await scraped(server))["leoserve_connections"] > before:
            pass


async def scraped(server: Running) -> dict[str, float]:
    """What a scrape tells of connections, its own among them."""
    await server.http.get("/metrics")
    return {name: value for name, value in values(server.context.metrics).items() if "_connections" in name}


def test_the_engines_process_is_measured_while_there_is_one() -> None:
    metrics, engine = Metrics(), SimpleNamespace(stats=EngineStats(), ready=None, state="ready", restarts=0, pid=None)
    metrics.watch("leo", engine, 0)
    assert not [name for name in values(metrics) if name.startswith("leoserve_engine_process")]
    engine.pid = os.getpid()
    found = values(metrics)
    for name in ("resident_memory_bytes", "cpu_seconds_total", "start_time_seconds"):
        assert found[f"leoserve_engine_process_{name}"] == pytest.approx(found[f"process_{name}"], rel=0.1)


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
