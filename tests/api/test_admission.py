"""What the engine would refuse anyway, or memory should not hold, is refused before any work."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from leoserve.api.admission import BODIES_HELD, Admission
from leoserve.api.errors import ApiError
from leoserve.engine.request import EngineStats
from leoserve.settings import Settings
from tests.conftest import PATIENCE

from .conftest import Running, Start
from .test_errors import error_of


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_with_a_full_queue_a_body_is_not_even_read(server: Running, path: str) -> None:
    server.engine.stats = EngineStats(waiting=1024)
    server.engine.in_flight = 1024
    answer = await server.http.post(path, content=b"{")  # reading it would be a 400
    assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    assert int(answer.headers["retry-after-ms"]) >= 500
    assert 'rejected_total{reason="overloaded"} 1.0' in (await server.http.get("/metrics")).text


async def test_an_old_snapshot_of_an_idle_engine_refuses_nobody(server: Running) -> None:
    server.engine.stats = EngineStats(waiting=1024)
    assert (await server.chat()).status_code == 200


async def test_requests_being_prepared_are_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start(max_num_seqs=1, max_waiting_requests=0)
    begun, go_on = asyncio.Event(), threading.Event()
    loop, render = asyncio.get_running_loop(), server.context.template.render

    def slow(*args: Any, **kwargs: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(PATIENCE)
        return render(*args, **kwargs)

    monkeypatch.setattr(server.context.template, "render", slow)
    first = asyncio.create_task(server.chat())
    await begun.wait()
    refused = await server.chat()
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    go_on.set()
    assert (await first).status_code == 200
    assert (await server.chat()).status_code == 200


def test_the_bytes_of_bodies_are_bounded_and_given_back(server_settings: Settings) -> None:
    class Idle:
        stats = EngineStats()
        in_flight = 0

    admission = Admission(server_settings, Idle())
    with admission.place() as hold:
        hold(BODIES_HELD * server_settings.max_body_bytes)
        with admission.place() as other, pytest.raises(ApiError) as refused:
            other(1)
    assert refused.value.status == 429
    assert (admission.requests, admission.bytes) == (0, 0)


@pytest.fixture
def server_settings() -> Settings:
    return Settings(max_body_bytes=1024)
