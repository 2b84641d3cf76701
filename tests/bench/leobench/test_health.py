"""A client that cannot keep up says so."""

from __future__ import annotations

import asyncio
import time

import pytest

from leobench.health import Watch, warnings
from leobench.measure import beside
from leobench.records import ClientHealth


async def test_a_blocked_loop_is_noticed() -> None:
    watch = Watch()

    async def block() -> None:
        for _ in range(3):
            time.sleep(0.2)  # what is measured here: nothing else runs meanwhile
            await asyncio.sleep(0.05)

    await beside(block(), watch.follow())
    health = watch.health([0.0, 0.3])
    assert health.loop_lag_max > 0.15
    assert health.late_p99 > 0.29
    assert any("event loop was late" in text for text in health.warnings)
    assert any("after they were due" in text for text in health.warnings)


async def test_a_client_that_only_computes_is_the_bottleneck() -> None:
    begin, used = time.perf_counter(), time.process_time()
    watch = Watch()
    while time.process_time() - used < 0.3:
        pass
    health = watch.health([])
    share = (time.process_time() - used) / (time.perf_counter() - begin)
    assert health.cpu == pytest.approx(share, rel=0.1), "beside others it gets less than a core"
    health.cpu = 0.99
    assert any("the client is the bottleneck" in text for text in warnings(health))


def test_a_client_that_keeps_up_says_nothing() -> None:
    assert warnings(ClientHealth(loop_lag_p99=0.002, loop_lag_max=0.5, cpu=0.4, late_p99=0.002)) == []


async def test_the_measured_time_begins_anew() -> None:
    watch = Watch()
    time.sleep(0.1)  # a lag before the measured time
    await beside(asyncio.sleep(0.01), watch.follow())
    watch.begin()
    assert watch.health([]).loop_lag_max == 0.0
