"""Prometheus metrics: what is observed as requests run, and what is read off the engine when someone scrapes.

Own names begin with `leoserve_`. A few are also there under the names that routers and autoscalers know from vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, get_args

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import leoserve
from leoserve.board import Board
from leoserve.engine.request import EngineStats, Ready
from leoserve.series import Counts, Histogram, Level, Processes, Total

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. Each bucket of each histogram is a line of every scrape, and a router scrapes many times a second.
LATENCY = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0,
    20.0, 30.0, 60.0,
)  # fmt: skip
TOKENS = (1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)

Rejection = Literal[
    "overloaded", "rate_limited", "never_fits", "unavailable", "invalid", "unauthorized", "too_large", "timeout"
]
Finish = Literal["stop", "length", "abort", "error"]

# Every status that a request can end with is there from the start: of a counter that begins with its first event,
# Prometheus never sees that event.
STATUSES = (200, 307, 400, 401, 404, 405, 408, 413, 415, 429, 431, 499, 500, 503, 504)


class Engine(Protocol):
    """What is read of the engine at a scrape."""

    @property
    def stats(self) -> EngineStats: ...
    @property
    def ready(self) -> Ready | None: ...
    @property
    def state(self) -> str: ...
    @property
    def restarts(self) -> int: ...
    @property
    def pid(self) -> int | None: ...


class Metrics:
    """The metrics of one server, in a registry of its own. What is observed in all processes of `board` counts."""

    def __init__(self, board: Board | None = None) -> None:
        self.registry = CollectorRegistry()
        self._board = board = board or Board()
        self.time_to_first_token = self._latency("time_to_first_token", "From a request's arrival to its first token.")
        self.inter_token = self._latency("inter_token_latency", "Between two outputs of one answer, per token.")
        self.time_per_output_token = self._latency(
            "time_per_output_token", "Mean time between the tokens of one answer, first to last."
        )
        self.end_to_end = self._latency("e2e_request_latency", "From a request's arrival to its end.")
        self.queue = self._latency("request_queue_time", "From a request's arrival to its first place in a step.")
        self.prefill = self._latency("request_prefill_time", "From the first place in a step to the first token.")
        self.decode = self._latency("request_decode_time", "From a request's first token to its last.")
        self.prompt_tokens = self._tokens("request_prompt_tokens", "Tokens of one request's prompts.")
        self.generation_tokens = self._tokens("request_generation_tokens", "Tokens of one request's answers.")
        self.step_tokens = self._tokens("step_tokens", "Tokens computed by one step.")
        self._finished = self._counts("requests_finished", "Answers by why they ended.", "reason", get_args(Finish))
        self._rejected = self._counts(
            "requests_rejected", "Requests that were not served, by why.", "reason", get_args(Rejection)
        )
        self._responses = self._counts(
            "responses",
            "Requests by the status they ended with, an error within a stream by that error's, without those for "
            "/health, /ready and /metrics.",
            "status",
            map(str, STATUSES),
        )
        self._connections = Level(board, "leoserve_connections", "Open client connections.")
        self.registry.register(self._connections)
        self._connections_limit = Gauge(
            "leoserve_connections_limit", "Client connections that are served.", registry=self.registry
        )
        self.several: SeveralProcesses | None = None  # where there are several
        if board.file is None:
            ProcessCollector(registry=self.registry)
        else:
            self.several = SeveralProcesses(board, self.registry)

    @property
    def connections(self) -> int:
        """Open client connections."""
        return self._connections.total

    def watch(self, model: str, engine: Engine, max_waiting: int) -> None:
        """Tell of `engine` at every scrape. `model`: the name that its model calls itself; `max_waiting`: how many
        answers may wait."""
        self.registry.register(EngineCollector(model, engine, max_waiting))

    def step(self, stats: EngineStats) -> None:
        """The engine has computed one step."""
        self.step_tokens.observe(stats.step_tokens)

    def finished(self, reason: Finish) -> None:
        """One answer has ended."""
        self._finished.add(reason)

    def rejected(self, reason: Rejection) -> None:
        """One request was not served."""
        self._rejected.add(reason)

    def responded(self, status: int) -> None:
        """One request has ended with this HTTP status."""
        known = status if status in STATUSES else status // 100 * 100  # as RFC 9110 has it for whom does not know it
        self._responses.add(str(known))

    def connected(self, count: int, limit: int | None) -> None:
        """So many connections of this process are open now, and `limit` of all processes' are served."""
        self._connections.set(count)
        if limit is not None:
            self._connections_limit.set(limit)

    def render(self) -> bytes:
        """The text that a scrape gets."""
        return generate_latest(self.registry)

    def _latency(self, name: str, documentation: str) -> Histogram:
        return self._histogram(f"{name}_seconds", documentation, LATENCY)

    def _tokens(self, name: str, documentation: str) -> Histogram:
        return self._histogram(name, documentation, TOKENS)

    def _counts(self, name: str, documentation: str, label: str, values: Iterable[str]) -> Counts:
        counts = Counts(self._board, f"leoserve_{name}", documentation, label, values)
        self.registry.register(counts)
        return counts

    def _histogram(self, name: str, documentation: str, bounds: Sequence[float]) -> Histogram:
        histogram = Histogram(self._board, f"leoserve_{name}", documentation, bounds)
        self.registry.register(histogram)
        return histogram


class SeveralProcesses:
    """What is told only where several processes answer."""

    def __init__(self, board: Board, registry: CollectorRegistry) -> None:
        self.use = Processes(board)
        self.restarts = Total(board, "leoserve_api_worker_restarts", "How often a worker was started again.")
        registry.register(self.use)
        registry.register(self.restarts)


class EngineCollector(Collector):
    """Reads the engine's last snapshot when someone scrapes; between scrapes it costs nothing."""

    def __init__(self, model: str, engine: Engine, max_waiting: int) -> None:
        self.model = model
        self.engine = engine
        self.max_waiting = max_waiting
        # Memory and processor time of the engine's process, where most of both is.
        self._process = ProcessCollector(namespace="leoserve_engine", pid=self._pid, registry=None)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the engine."""
        return ()

    def collect(self) -> Iterator[Metric]:
        stats, ready = self.engine.stats, self.engine.ready
        usage = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        yield from self._gauges(stats, ready, usage)
        yield from self._counters(stats)
        yield self._info(ready)
        if self.engine.pid is not None:
            yield from self._process.collect()
        yield from self._vllm(stats, ready, usage)

    def _pid(self) -> int:
        return self.engine.pid or 0

    def _gauges(self, stats: EngineStats, ready: Ready | None, usage: float) -> Iterator[Metric]:
        for name, documentation, value in (
            ("ready", "1 while requests are taken; 0 while loading, restarting or shutting down.", self._is_ready()),
            ("requests_running", "Answers being computed.", stats.running),
            ("requests_running_limit", "Answers that can be computed at once.", ready.max_num_seqs if ready else 0),
            ("requests_waiting", "Answers waiting for a place in a step.", stats.waiting),
            ("requests_waiting_limit", "Answers that may wait.", self.max_waiting),
            ("kv_blocks", "Blocks of the key/value cache.", ready.num_blocks if ready else 0),
            ("kv_blocks_used", "Blocks that a running answer holds.", stats.blocks_used),
            ("kv_cache_usage_ratio", "Share of the blocks that running answers hold, 0 to 1.", usage),
            ("last_step_seconds", "Duration of the last step.", stats.step_seconds),
        ):
            yield GaugeMetricFamily(f"leoserve_{name}", documentation, value=value)

    def _is_ready(self) -> float:
        return float(self.engine.state == "ready")

    def _counters(self, stats: EngineStats) -> Iterator[Metric]:
        for name, documentation, total in (
            ("engine_restarts", "How often the engine had died and was started again.", self.engine.restarts),
            ("engine_steps", "Steps computed.", stats.steps),
            ("prompt_tokens", "Prompt tokens computed, without cached ones.", stats.prompt_tokens),
            ("cached_tokens", "Prompt tokens that the prefix cache had.", stats.cached_tokens),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("preemptions", "Answers interrupted for want of blocks.", stats.preemptions),
            ("prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prefix_queries),
            ("prefix_cache_hits", "Tokens found in the prefix cache.", stats.prefix_hits),
        ):
            yield CounterMetricFamily(f"leoserve_{name}", documentation, value=total)

    def _info(self, ready: Ready | None) -> Metric:
        labels = {"version": leoserve.__version__, "model": self.model}
        if ready is not None:
            labels |= {"dtype": ready.dtype, "device": ready.device, "attention": ready.attention}
        return InfoMetricFamily("leoserve", "What serves.", value=labels)

    def _vllm(self, stats: EngineStats, ready: Ready | None, usage: float) -> Iterator[Metric]:
        """One series each, under the names and with the meaning that vLLM gives them."""
        for name, documentation, value in (
            ("num_requests_running", "Answers being computed.", float(stats.running)),
            ("num_requests_waiting", "Answers waiting for a place in a step.", float(stats.waiting)),
            ("kv_cache_usage_perc", "Share of the blocks that running answers hold, 0 to 1.", usage),
        ):
            yield self._gauge(f"vllm:{name}", documentation, {"model_name": self.model}, value)
        cache = {
            "block_size": str(ready.block_size if ready else 0),
            "num_gpu_blocks": str(ready.num_blocks if ready else 0),
        }
        yield self._gauge("vllm:cache_config_info", "Shape of the key/value cache.", cache, 1.0)
        adapters = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
        yield self._gauge("vllm:lora_requests_info", "LoRA adapters in use.", adapters, 0.0)

    @staticmethod
    def _gauge(name: str, documentation: str, labels: dict[str, str], value: float) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        return family
