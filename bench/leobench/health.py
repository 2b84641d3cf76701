"""Whether the client keeps up. What a late client measures is itself, and nobody would see it in the figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from leobench.records import ClientHealth
from leobench.summary import percentile

STEP = 0.02  # seconds between two looks at the loop
MOST_LAG = 0.02  # seconds at the 99th percentile
MOST_CPU = 0.85  # of one core: all of it runs in one thread
MOST_LATE = 0.02  # seconds at the 99th percentile


class Watch:
    """Looks how late the event loop runs what is due, and what CPU time the process takes."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """The measured time begins here."""
        self._lags: list[float] = []
        self._cpu = time.process_time()
        self._began = time.perf_counter()

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            due = time.perf_counter() + STEP
            await asyncio.sleep(STEP)
            self._lags.append(max(0.0, time.perf_counter() - due))

    def health(self, lateness: Sequence[float]) -> ClientHealth:
        """Since the beginning. `lateness`: seconds by which requests of an open loop were begun after they were due."""
        lags = sorted(self._lags) or [0.0]
        health = ClientHealth(
            loop_lag_p99=percentile(lags, 99),
            loop_lag_max=lags[-1],
            cpu=(time.process_time() - self._cpu) / max(1e-9, time.perf_counter() - self._began),
            late_p99=percentile(sorted(lateness), 99) if lateness else 0.0,
        )
        health.warnings = warnings(health)
        return health


def warnings(health: ClientHealth) -> list[str]:
    """What makes a run's figures the client's own."""
    told = []
    if health.cpu > MOST_CPU:
        told.append(
            f"the client is the bottleneck: it took {health.cpu:.0%} of its one core; throughput may be its own. "
            "Run several clients, or on another machine"
        )
    if health.loop_lag_p99 > MOST_LAG:
        told.append(
            f"the client's event loop was late by {health.loop_lag_p99 * 1e3:.0f} ms at the 99th percentile: latencies "
            "include that. Give the client a core of its own"
        )
    if health.late_p99 > MOST_LATE:
        told.append(
            f"requests were begun {health.late_p99 * 1e3:.0f} ms after they were due at the 99th percentile; latencies "
            "count from when they were due"
        )
    return told
