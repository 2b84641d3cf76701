"""How answers travel: server-sent events byte by byte, keep-alive, usage, and what happens when things end early."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from openai import APIError

from leoserve.engine.client import EngineDied
from tests.conftest import PATIENCE

from .conftest import Running, Start, parse_events

CHAT = {"model": "leo", "messages": [{"role": "user", "content": "Hallo"}], "stream": True}


async def test_a_stream_is_role_texts_end_and_done(server: Running) -> None:
    response = await server.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    events = response.content.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert b"\r" not in response.content
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        for delta, finish in (
            ({"role": "assistant", "content": ""}, None),
            ({"content": "Pa"}, None),
            ({"content": "ris"}, None),
            ({"content": "."}, None),
            ({}, "stop"),
        )
    ]
    heads = [{name: chunk[name] for name in chunk if name != "choices"} for chunk in chunks]
    assert all(head == heads[0] for head in heads)
    assert heads[0].keys() == {"id", "object", "created", "model", "service_tier", "system_fingerprint"}
    assert heads[0]["object"] == "chat.completion.chunk"


async def test_a_completions_stream_ends_in_a_chunk_without_text(server: Running) -> None:
    events = await server.events("/v1/completions")
    assert events[-1] == "[DONE]"
    assert [event["choices"][0] for event in events[-3:-1]] == [
        {"index": 0, "text": ".", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"},
    ]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_usage_is_null_until_a_last_chunk_without_choices(server: Running, path: str) -> None:
    *chunks, last, done = await server.events(path, stream_options={"include_usage": True}, n=2)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 8
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_without_the_option_no_chunk_has_usage(server: Running) -> None:
    assert not any("usage" in chunk for chunk in (await server.events())[:-1])


async def test_continuous_usage_grows_with_every_chunk(server: Running) -> None:
    chunks = (await server.events(stream_options={"continuous_usage_stats": True}))[:-1]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 1, 2, 3, 4]


async def test_obfuscation_makes_chunks_of_few_sizes(server: Running) -> None:
    server.says("a Hauptstadt über alle Straßen")
    response = await server.chat(stream=True, stream_options={"include_obfuscation": True})
    events = [event for event in response.content.split(b"\n\n") if event.startswith(b"data: {")]
    assert {len(event) - len(b"data: ") for event in events} <= {128 * size for size in range(1, 4)}
    assert all(json.loads(event[6:])["obfuscation"] is not None for event in events)
    assert not any("obfuscation" in chunk for chunk in (await server.events())[:-1])


async def test_no_character_is_sent_in_halves(server: Running) -> None:
    server.says("Ä🦁ö🇩🇪ß中")
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in (await server.events())[:-1]]
    assert "".join(texts) == "Ä🦁ö🇩🇪ß中"
    assert not any("\ufffd" in text for text in texts)


async def test_bytes_that_never_become_a_character_are_shown_at_the_end(server: Running) -> None:
    server.engine.answer = lambda request, index: [3 + 0xF0, 3 + 0x9F]
    chunks = (await server.events(max_tokens=2))[:-1]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks).strip("\ufffd") == ""
    assert "\ufffd" in chunks[1]["choices"][0]["delta"]["content"]


async def test_a_stop_string_over_several_tokens_never_leaks(server: Running) -> None:
    server.says("Die Hauptstadt von Frankreich ist Paris.")
    events = await server.events(stop=["Frankreich ist Pa"], logprobs=True, return_token_ids=False)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events[:-1])
    told = "".join(
        token["token"]
        for chunk in events[:-1]
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    )
    assert text == told == "Die Hauptstadt von "
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


async def test_keep_alive_comments_flow_while_nothing_else_does(start: Start) -> None:
    server = await start(keep_alive=0.01)
    server.engine.pause_after = 1
    async with server.http.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        seen = ""
        async for text in response.aiter_text():
            seen += text
            if ": keep-alive\n\n: keep-alive\n\n" in seen:
                server.engine.resume.set()
    assert seen.startswith("data: {")
    assert parse_events(seen)[-1] == "[DONE]"


async def test_the_engines_death_becomes_an_error_event_and_done(server: Running) -> None:
    server.engine.pause_after = 2
    server.engine.failure = EngineDied("the engine ended with code -9 and is being restarted")
    *chunks, error, done = await server.events(stream_options={"include_usage": True})
    assert chunks[-1]["choices"][0]["delta"]["content"] == "ris"
    assert done == "[DONE]"
    assert error["error"].keys() == {"message", "type", "param", "code"}
    assert "ended with code -9" in error["error"]["message"]
    stream = await server.openai.chat.completions.create(**CHAT)  # type: ignore[call-overload]
    with pytest.raises(APIError, match="code -9"):
        [chunk async for chunk in stream]


async def test_an_unforeseen_failure_in_a_stream_says_nothing_of_its_cause(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.pause_after = 1
    server.engine.failure = KeyError("secret detail")
    *_, error, done = await server.events()
    assert done == "[DONE]"
    assert error["error"]["code"] == "internal_error"
    assert "secret" not in error["error"]["message"]
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_has_its_own_status(server: Running, stream: bool) -> None:
    server.engine.pause_after = 0
    server.engine.failure = EngineDied("the engine ended")
    answer = await server.chat(stream=stream)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["retry-after"] == "5"


@pytest.mark.parametrize("stream", [False, True])
async def test_one_requests_failure_is_told_to_its_client(server: Running, stream: bool) -> None:
    server.engine.error = "the logits were not finite"
    answer = await server.chat(stream=stream)
    assert answer.status_code == 500
    assert "the logits were not finite" in answer.json()["error"]["message"]


async def leave(server: Running, path: str, body: dict[str, Any], *, after: str) -> None:
    """Send a request and close its connection: "nothing" before an answer, "first" after its first event."""
    transport = httpx.AsyncHTTPTransport()
    async with httpx.AsyncClient(base_url=server.url, transport=transport) as client:
        if after == "first":
            async with client.stream("POST", path, json=body) as response:
                await anext(response.aiter_bytes())
        else:
            request = asyncio.create_task(client.post(path, json=body))
            await server.engine.paused.wait()
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("stream", "pause", "after"),
    [(False, 0, "nothing"), (False, 2, "nothing"), (True, 0, "nothing"), (True, 2, "first")],
)
async def test_a_client_that_goes_away_ends_its_work_in_the_engine(
    server: Running, path: str, stream: bool, pause: int, after: str
) -> None:
    server.engine.pause_after = pause
    body: dict[str, Any] = {"model": "leo", "stream": stream, "n": 2}
    body |= {"messages": CHAT["messages"]} if "chat" in path else {"prompt": ["Hallo", "Paris"]}
    await leave(server, path, body, after=after)
    await asyncio.wait_for(server.engine.idle.wait(), PATIENCE)
    prompts = 1 if "chat" in path else 2
    assert len(server.engine.aborts) == prompts
    assert server.engine.running == 0
