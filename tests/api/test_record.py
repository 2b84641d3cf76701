"""The line in the log that each request leaves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from leoserve.log import fields
from tests.conftest import PATIENCE

from .conftest import Running
from .test_answer import leave


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="leoserve.request")
    return caplog


def requests(log: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [fields(line) for line in log.records if line.name == "leoserve.request"]


@pytest.mark.parametrize("stream", [False, True])
async def test_one_line_tells_all_of_a_request(server: Running, log: pytest.LogCaptureFixture, stream: bool) -> None:
    server.engine.cached = 16
    answer = await server.chat(stream=stream, n=2, max_tokens=4)
    await server.http.get("/health")
    (line,) = requests(log)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["id"].startswith("chatcmpl-")
    assert (line["model"], line["status"], line["finish_reason"]) == ("leo", 200, "stop")
    assert (line["prompt_tokens"], line["cached_tokens"], line["generated_tokens"]) == (26, 16, 8)
    assert 0 <= line["queue_s"] <= line["ttft_s"] <= line["total_s"]


async def test_a_refused_request_leaves_its_status(server: Running, log: pytest.LogCaptureFixture) -> None:
    await server.chat(temperature=3)
    await server.complete(max_tokens=500)
    assert [(line["status"], line["ttft_s"], line["generated_tokens"]) for line in requests(log)] == [
        (400, None, 0),
        (400, None, 0),
    ]
    assert [line["error"].partition(":")[0] for line in requests(log)] == ["temperature", "prompt"]


async def test_a_failure_leaves_status_500(
    server: Running, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.context.tokenizer, "encode", None)
    await server.complete()
    assert [line["status"] for line in requests(log)] == [500]


@pytest.mark.parametrize(("stream", "pause"), [(False, 1), (True, 0), (True, 1)])
async def test_a_client_that_went_away_leaves_status_499(
    server: Running, log: pytest.LogCaptureFixture, stream: bool, pause: int
) -> None:
    server.engine.pause_after = pause
    body = {"model": "leo", "prompt": "Hallo", "stream": stream}
    await leave(server, "/v1/completions", body, after="first" if stream and pause else "nothing")
    await asyncio.wait_for(server.engine.idle.wait(), PATIENCE)
    async with asyncio.timeout(PATIENCE):
        while not requests(log):
            await asyncio.sleep(0)
    (line,) = requests(log)
    assert (line["status"], line["finish_reason"]) == (499, "abort")
