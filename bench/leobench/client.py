"""Sends requests over HTTP and notes when what came back: one record each.

It shares the machine's cores with what it measures more often than not, so it looks at bytes no more than it must.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from leobench.answers import DONE, Answer, EventLines, complaint, decode, said_of
from leobench.records import RequestRecord
from leobench.workloads import Prompt

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
IDLE_SECONDS = 2.0  # a kept connection is given up before a server closes it under a request (uvicorn: 5 s)
CONNECT_SECONDS = 30.0


class Target(Struct, frozen=True):
    """Where requests go, and what every one of them says.

    urls: without /v1
    fields: of the body, beside model, prompt and max_tokens; one that is None is left out altogether
    timeout: seconds for one request, from its being sent to its last byte
    """

    urls: list[str]
    model: str
    endpoint: str
    stream: bool
    fields: dict[str, Any]
    timeout: float

    def body(self, prompt: Prompt, tokens: int) -> bytes:
        """The JSON of one request."""
        content: dict[str, Any] = {
            "model": self.model,
            "messages" if self.endpoint == "chat" else "prompt": prompt,
            "max_tokens": tokens,
            "stream": self.stream,
        }
        if self.stream:
            content["stream_options"] = {"include_usage": True}
        content |= self.fields
        return msgspec.json.encode({name: value for name, value in content.items() if value is not None})


class Failed(Exception):
    """A request that was answered, but not with what was asked for: the error's kind, and what was said."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class Client:
    """Connections to a target. `now` gives the run's time in seconds."""

    def __init__(self, target: Target, headers: dict[str, str], now: Callable[[], float]) -> None:
        self.target = target
        self.now = now
        self._paths = [url + PATHS[target.endpoint] for url in target.urls]
        self._headers = {"content-type": "application/json", **headers}
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(self._sent)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=target.timeout, sock_connect=min(CONNECT_SECONDS, target.timeout)),
            trace_configs=[trace],
            auto_decompress=True,
        )

    async def close(self) -> None:
        await self.session.close()

    async def send(self, body: bytes, record: RequestRecord) -> str:
        """Send a request and fill its record, errors included. The answer's text."""
        record.sent = self.now()
        text: list[str] = []
        try:
            async with self.session.post(
                self._paths[record.url], data=body, headers=self._headers, trace_request_ctx=record
            ) as response:
                if response.status != 200:
                    raise Failed(f"http {response.status}", complaint(await response.read()))
                if self.target.stream:
                    await self._follow(response.content, record, text)
                else:
                    await self._take(response, record, text)
        except (Failed, aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            record.error = kind(error)
            record.message = str(error)[:200] or None
        record.ended = self.now()
        if record.chunk_times:
            record.first, record.last = record.chunk_times[0], record.chunk_times[-1]
        return "".join(text)

    async def _sent(self, _session: aiohttp.ClientSession, context: SimpleNamespace, _event: Any) -> None:
        """The request's head is on its way: connecting is over."""
        if (record := context.trace_request_ctx) is not None:  # a question that belongs to no workload has none
            record.sent = self.now()

    async def _follow(self, content: aiohttp.StreamReader, record: RequestRecord, text: list[str]) -> None:
        """A stream, to its end. Raises Failed for one that breaks off or tells of an error."""
        lines = EventLines()
        keep = record.session is not None
        done = False
        while chunk := await content.readany():
            now = self.now()
            for data in lines.feed(chunk):
                if data == DONE:
                    done = True
                    continue
                event = decode(data)
                if event.choices and event.choices[0].anything:
                    record.chunk_times.append(now)
                    if keep:
                        text.append(event.choices[0].words)
                note(event, record)
        if not done and record.finish_reason is None:
            raise Failed("incomplete", "the stream ended before the answer")

    async def _take(self, response: aiohttp.ClientResponse, record: RequestRecord, text: list[str]) -> None:
        """A whole answer. Raises Failed where it holds none."""
        answer = decode(await response.read())
        record.first = record.last = self.now()
        note(answer, record)
        if not answer.choices:
            raise Failed("invalid", "the answer has no choices")
        if record.session is not None:
            text.append(answer.choices[0].words)


def note(answer: Answer, record: RequestRecord) -> None:
    """What an answer or an event says beside text. Raises Failed for an error that came instead of an answer."""
    if answer.error is not None:
        raise Failed("stream", said_of(answer.error))
    for choice in answer.choices:
        if choice.finish_reason is not None:
            record.finish_reason = choice.finish_reason
    if (usage := answer.usage) is not None:
        record.prompt_tokens = usage.prompt_tokens
        record.output_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            record.cached_tokens = usage.prompt_tokens_details.cached_tokens


def kind(error: Exception) -> str:
    """The name under which an error is counted."""
    match error:
        case Failed():
            return error.kind
        case TimeoutError() | aiohttp.ServerTimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorError():
            return "connect"
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | ConnectionError():
            return "disconnect"
        case msgspec.DecodeError():
            return "invalid"
        case _:
            return "connection"
