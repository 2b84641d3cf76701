"""Runs made from a small model of a server, so that what is true of them is known."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from leobench.records import ClientHealth, RequestRecord, Run, ServerSample, Slo, Sweep

SLO = Slo(ttft=0.5, itl=0.05)


def run(
    name: str = "made",
    *,
    seed: int = 0,
    rate: float = 8.0,
    seconds: float = 60.0,
    slots: int = 32,
    step: float = 0.02,
    prefill: float = 0.1,
    tokens: int = 24,
    faults: float = 0.0,
    streamed: bool = True,
    kind: Literal["measured", "simulated"] = "measured",
    slo: Slo | None = SLO,
    model: str = "leoserve-demo",
    **client: Any,
) -> Run:
    """An open loop at `rate` against a server that answers `slots` requests at once, first come, first served.

    A first token takes `prefill` seconds and every other one `step`, each times a random factor of its own.
    """
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    free = np.zeros(slots)
    records = []
    for index, arrival in enumerate(float(at) for at in arrivals):
        slot = int(np.argmin(free))
        began = max(arrival, float(free[slot]))
        steps = step * random.gamma(20, 1 / 20, 1 + int(random.integers(tokens)))
        times = began + prefill * random.gamma(8, 1 / 8) + np.cumsum(steps) - steps[0]
        free[slot] = times[-1]
        records.append(_record(index, arrival, times, random.random() < faults, streamed, warmup=arrival < seconds / 6))
    until = float(arrivals[-1])
    return Run(
        name=name,
        kind=kind,
        started="2026-01-02T03:04:05Z",
        measured_from=seconds / 6,
        measured_until=until,
        workload={"name": "chat", "seed": seed},
        load={"pattern": "poisson", "rate": rate},
        target={"urls": ["http://127.0.0.1:8000"], "model": model, "endpoint": "chat", "stream": streamed},
        settings={"temperature": 0.0},
        versions={"leobench": "0.1.0", "python": "3.11.2"},
        requests=records,
        samples=_samples(records, until, slots),
        client=ClientHealth(loop_lag_p99=0.002, loop_lag_max=0.01, cpu=0.2, late_p99=0.001, **client),
        slo=slo,
    )


def _record(
    index: int, arrival: float, times: np.ndarray[Any, Any], failed: bool, streamed: bool, warmup: bool
) -> RequestRecord:
    first, last = float(times[0]), float(times[-1])
    record = RequestRecord(index, arrival, arrival + 0.001, last, group=("chat", "document")[index % 2], warmup=warmup)
    if failed:
        record.error, record.message, record.ended = "http 429", "the queue is full", arrival + 0.01
        return record
    record.first, record.last = (first, last) if streamed else (last, last)
    record.chunk_times = [float(time) for time in times] if streamed else []
    record.prompt_tokens, record.output_tokens, record.finish_reason = 100, len(times), "length"
    return record


def _samples(records: list[RequestRecord], until: float, slots: int) -> list[ServerSample]:
    times = np.arange(0, until, 0.5)
    sent, ended = (
        np.searchsorted(np.sort([getattr(record, name) for record in records]), times, side="right")
        for name in ("sent", "ended")
    )
    samples = []
    for time, here in zip(times.tolist(), (sent - ended).tolist(), strict=True):
        running = min(slots, here)
        usage = running / slots
        samples.append(ServerSample(time, float(running), float(here - running), usage, preemptions=0.0))
    return samples


def sweep(name: str = "rates", rates: tuple[float, ...] = (2, 4, 8, 16, 32, 48), **options: Any) -> Sweep:
    """Runs at several rates of a server that cannot keep up with the highest."""
    runs = [run(f"{name} {rate:g}", rate=rate, seed=seed, **options) for seed, rate in enumerate(rates)]
    return Sweep(name, "rate", list(rates), runs)
