"""A request that takes longer than the server gives it is ended, and so is the engine's work for it."""

from __future__ import annotations

import threading

import openai
import pytest

from .conftest import Start, parse_events
from .test_errors import error_of

BRIEF = 0.05  # seconds; long enough for a request that nothing holds up is what the default, no limit, is
ENOUGH = 1.0  # seconds; for an answer to begin, on a machine that does much else


async def test_before_the_first_token_it_is_a_504_that_may_be_tried_again(start: Start) -> None:
    server = await start(request_timeout=BRIEF)
    for stream in (False, True):
        server.engine.resume.clear()
        server.engine.pause_after = 0
        answer = await server.chat(stream=stream)
        error = error_of(answer)
        assert (answer.status_code, error["type"], error["code"]) == (504, "server_error", "request_timeout")
        assert "0.05 s" in error["message"]
        assert answer.headers["retry-after"] == "1"
        assert "x-should-retry" not in answer.headers
        await server.engine.idle.wait()
    assert len(server.engine.aborts) >= 2
    assert 'leoserve_requests_rejected_total{reason="timeout"} 2.0' in (await server.http.get("/metrics")).text


async def test_an_answer_that_has_begun_would_only_take_as_long_again(start: Start) -> None:
    server = await start(request_timeout=ENOUGH)
    server.engine.pause_after = 2
    answer = await server.chat()
    assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
    client = server.openai.with_options(max_retries=3)
    server.engine.resume.clear()
    seen = len(server.engine.requests)
    with pytest.raises(openai.InternalServerError):
        await client.completions.create(model="leo", prompt="Hallo")
    assert len(server.engine.requests) == seen + 1


async def test_in_a_stream_it_is_an_error_event_and_the_end(start: Start) -> None:
    server = await start(request_timeout=ENOUGH)
    server.engine.pause_after = 2
    answer = await server.chat(stream=True, n=2)
    first, *_, error, done = parse_events(answer.text)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert (error["error"]["code"], done) == ("request_timeout", "[DONE]")
    await server.engine.idle.wait()
    assert server.engine.running == 0


async def test_all_prompts_of_a_request_end_with_it(start: Start) -> None:
    server = await start(request_timeout=BRIEF)
    server.engine.pause_after = 1
    for stream in (False, True):
        server.engine.resume.clear()
        await server.complete(prompt=["Hallo"] * 5, stream=stream)
        await server.engine.idle.wait()
    assert server.engine.running == 0


async def test_tokenizing_counts_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start(request_timeout=BRIEF)
    answered = threading.Event()

    def encode(*args: object, **kwargs: object) -> list[int]:
        answered.wait()
        return [5]

    monkeypatch.setattr(server.context.tokenizer, "encode", encode)
    try:
        assert (await server.complete()).status_code == 504
    finally:
        answered.set()
    assert not server.engine.requests


async def test_an_answer_in_time_is_left_alone(start: Start) -> None:
    server = await start(request_timeout=1e6)
    assert (await server.chat()).status_code == 200
    assert (await server.events())[-1] == "[DONE]"
