"""What goes over the wire, and what becomes of what comes back, or does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from leobench.answers import EventLines, complaint
from leobench.client import Client, Target
from leobench.records import RequestRecord

from .conftest import Process

Start = Callable[..., Process]
MESSAGES = [{"role": "user", "content": "Guten Tag!"}]


async def send(
    url: str, *, headers: dict[str, str] | None = None, session: int | None = None, **target: Any
) -> tuple[RequestRecord, str]:
    """One request of five tokens, and the text of its answer."""
    began = time.perf_counter()
    fields = {"endpoint": "chat", "stream": True, "fields": {}, "timeout": 30.0} | target
    aim = Target([url], "double", **fields)
    client = Client(aim, headers or {}, lambda: time.perf_counter() - began)
    record = RequestRecord(0, 0.0, 0.0, 0.0, session=session)
    prompt = MESSAGES if aim.endpoint == "chat" else [5, 6, 7]
    try:
        text = await client.send(aim.body(prompt, 5), record)
    finally:
        await client.close()
    return record, text


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("per_event", [1, 2])
async def test_tokens_come_from_usage_and_times_from_events(
    start_double: Start, endpoint: str, stream: bool, per_event: int
) -> None:
    double = start_double(first=[0.05], gaps=[0.02], per_event=per_event)
    record, _ = await send(double.url, endpoint=endpoint, stream=stream)
    assert (record.error, record.finish_reason) == (None, "length")
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (10 if endpoint == "chat" else 3, 5, 4)
    assert record.first is not None
    assert record.last is not None
    assert 0 <= record.sent < record.first <= record.last <= record.ended
    assert record.first >= 0.05
    assert len(record.chunk_times) == (0 if not stream else 5 if per_event == 1 else 3)


async def test_an_event_without_text_is_no_token(start_double: Start) -> None:
    """A chat's first event only tells the role, here long before the first token."""
    double = start_double(first=[0.3])
    record, _ = await send(double.url)
    assert record.chunk_times[0] >= 0.3
    assert len(record.chunk_times) == 5


async def test_what_is_sent_is_what_was_asked_for(start_double: Start) -> None:
    double = start_double()
    await send(double.url, fields={"temperature": 0.5, "stop": ["\n"], "stream_options": None}, headers={"x-team": "a"})
    await send(double.url, endpoint="completions", stream=False, fields={"max_tokens": 3})
    chat, completion = double.log()
    assert chat["body"] == {
        "model": "double", "messages": MESSAGES, "max_tokens": 5, "stream": True, "temperature": 0.5, "stop": ["\n"],
    }  # fmt: skip
    assert chat["headers"]["x-team"] == "a"
    assert completion["body"] == {"model": "double", "prompt": [5, 6, 7], "max_tokens": 3, "stream": False}


async def test_without_usage_tokens_are_unknown_and_not_counted_from_events(start_double: Start) -> None:
    record, _ = await send(start_double().url, fields={"stream_options": None})
    assert record.error is None
    assert len(record.chunk_times) == 5
    assert record.output_tokens is None


@pytest.mark.parametrize("stream", [True, False])
async def test_a_conversation_gets_the_text_of_its_answers(start_double: Start, stream: bool) -> None:
    double = start_double()
    assert (await send(double.url, session=0, stream=stream))[1] == "Ja. Ja. Ja. Ja. Ja. "
    assert (await send(double.url, stream=stream))[1] == "", "a single request keeps no text"


async def test_a_refused_request_is_counted_by_its_status_with_the_servers_words(start_double: Start) -> None:
    record, _ = await send(start_double(fail=1).url)
    assert (record.error, record.message) == ("http 503", "no room")
    assert record.ended > 0
    assert record.first is None


async def test_a_cut_connection_keeps_the_tokens_that_came(start_double: Start) -> None:
    record, _ = await send(start_double(drop=1, gaps=[0.05]).url)
    assert record.error == "disconnect"
    assert len(record.chunk_times) == 2
    assert record.first == record.chunk_times[0]


async def test_nobody_there_is_an_error_of_connecting(start_double: Start) -> None:
    double = start_double()
    double.process.kill()
    double.process.wait()
    record, _ = await send(double.url)
    assert record.error == "connect"


async def test_a_slow_answer_is_given_up(start_double: Start) -> None:
    record, _ = await send(start_double(first=[60.0]).url, timeout=0.2)
    assert record.error == "timeout"
    assert record.ended >= 0.2


@asynccontextmanager
async def answering(content: bytes, kind: bytes = b"text/event-stream") -> AsyncIterator[str]:
    """A server that answers everything with the same bytes and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\nconnection: close\r\n\r\n" + content)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


TOKEN = b'data: {"choices": [{"index": 0, "delta": {"content": "Ja"}}]}\n\n'
END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (TOKEN + b'data: {"error": {"message": "engine died"}}\n\ndata: [DONE]\n\n', "stream", "engine died"),
        (TOKEN + b'data: {"error": "engine died"}\n\n', "stream", "engine died"),
        (TOKEN, "incomplete", "the stream ended before the answer"),
        (TOKEN + b"data: {broken\n\n", "invalid", None),
        (TOKEN + END, None, None),
        (TOKEN + b"data: [DONE]\n\n", None, None),
        ((b": a comment\n\nevent: x\n" + TOKEN + END).replace(b"\n", b"\r\n"), None, None),
    ],
)
async def test_a_stream_ends_as_it_ends(content: bytes, error: str | None, message: str | None) -> None:
    async with answering(content) as url:
        record, _ = await send(url)
    assert record.error == error
    assert message is None or record.message == message
    assert len(record.chunk_times) == 1


@pytest.mark.parametrize(
    ("content", "error"), [(b"[]", "invalid"), (b'{"choices": []}', "invalid"), (b"<html>", "invalid")]
)
async def test_a_whole_answer_that_is_none_is_an_error(content: bytes, error: str) -> None:
    async with answering(content, b"application/json") as url:
        record, _ = await send(url, stream=False)
    assert record.error == error


@pytest.mark.parametrize(
    "said",
    [{"reasoning_content": "Hm"}, {"reasoning": "Hm"}, {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}],
)
async def test_thoughts_and_calls_are_tokens_too(said: dict[str, Any]) -> None:
    import json

    event = b"data: " + json.dumps({"choices": [{"index": 0, "delta": said}]}).encode() + b"\n\n"
    async with answering(event + END) as url:
        record, _ = await send(url)
    assert len(record.chunk_times) == 1


def test_events_are_found_wherever_a_read_cuts_them() -> None:
    stream = TOKEN + b": ping\n\n" + END.replace(b"\n", b"\r\n") + b"data:[DONE]\n\n"
    whole = EventLines().feed(stream)
    assert len(whole) == 3
    assert whole[-1] == b"[DONE]"
    for size in (1, 2, 7, 50):
        lines = EventLines()
        parts = [data for at in range(0, len(stream), size) for data in lines.feed(stream[at : at + size])]
        assert parts == whole


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "too long", "type": "x"}}', "too long"),
        (b'{"detail": "no"}', "{'detail': 'no'}"),
        (b'{"message": "vLLM once said it so"}', "vLLM once said it so"),
        (b"<html>bad gateway", "<html>bad gateway"),
        (b"[1]", "[1]"),
        (b"\xff" * 900, "\ufffd" * 200),
    ],
)
def test_a_failure_is_told_in_its_own_words_cut_short(body: bytes, said: str) -> None:
    assert complaint(body) == said
