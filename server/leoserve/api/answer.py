"""How an answer gets to the client: in one piece, or as a stream of events."""

from __future__ import annotations

import logging
import secrets
import string
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import msgspec
from fastapi import Request as HttpRequest
from starlette.responses import Response

from leoserve.api.errors import ApiError, as_api_error
from leoserve.api.eventstream import EventStream
from leoserve.api.generation import Generation, Watch
from leoserve.api.protocol.base import StreamOptions
from leoserve.api.protocol.body import warning_headers
from leoserve.api.record import Record
from leoserve.api.stream import Delta

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
PLAIN = StreamOptions.model_validate({})
PADDED_TO = 128  # bytes: the chunk sizes that `include_obfuscation` lets an observer tell apart
LETTERS = string.ascii_letters + string.digits
MARK = secrets.token_hex(16)  # a text that is nowhere else in an event
encode = msgspec.json.Encoder().encode
Tell = Callable[[Delta, AsyncGenerator[Delta, None]], AsyncGenerator[bytes, None]]  # the bytes of the events


class WholeShape(Protocol):
    """How one endpoint tells an answer in one piece. It sees every delta once."""

    def add(self, delta: Delta) -> None: ...
    def whole(self) -> dict[str, Any]: ...


class Shape(WholeShape, Protocol):
    """How one endpoint tells an answer. It sees every delta once, as a chunk or for the whole."""

    @property
    def plain(self) -> bool:
        """Whether deltas of nothing but text become one chunk each, in which nothing else tells of the delta."""
        ...

    def chunks(self, delta: Delta) -> Iterable[dict[str, Any]]: ...
    def usage_chunk(self) -> dict[str, Any]: ...


async def send_whole(request: HttpRequest, generation: Generation, shape: WholeShape) -> Response:
    """One JSON response, when everything is there."""
    watch = Watch(request, generation)
    try:
        async with aclosing(generation.deltas()) as deltas:
            async for delta in deltas:
                shape.add(delta)
    finally:
        watch.close()
    body = msgspec.json.encode(shape.whole())
    return Response(body, media_type="application/json", headers=warning_headers(request))


async def send_stream(
    request: HttpRequest, generation: Generation, shape: Shape, options: StreamOptions | None
) -> Response:
    """A stream of chunks."""
    return await send_events(request, generation, partial(events, generation, shape, options or PLAIN))


async def send_events(request: HttpRequest, generation: Generation, tell: Tell) -> Response:
    """Server-sent events. The first delta is awaited before the headers go, so that an error until then has its own
    status."""
    watch = Watch(request, generation)
    deltas = generation.deltas()
    try:
        first = await anext(deltas)
    except BaseException:
        watch.close()
        raise
    return EventStream(
        tell(first, deltas),
        keep_alive=generation.context.settings.keep_alive,
        headers=warning_headers(request),
        closed=watch.close,
    )


async def events(
    generation: Generation, shape: Shape, options: StreamOptions, first: Delta, deltas: AsyncGenerator[Delta, None]
) -> AsyncGenerator[bytes, None]:
    """The events of a stream, those of one delta together. An error becomes an event; the last one is always [DONE]."""
    record = generation.record
    frames = Frames(shape, options, record)
    try:
        async with aclosing(deltas):
            if told := frames.of(first):
                yield told
            async for delta in deltas:
                if told := frames.of(delta):
                    yield told
        if options.include_usage:
            yield frame(msgspec.json.encode(shape.usage_chunk() | {"usage": record.usage()}))
    except Exception as error:
        yield frame(msgspec.json.encode(failure(error, record).body()))
    yield DONE


class Frames:
    """The bytes of one stream's events.

    Nearly all events of a choice differ in nothing but a piece of text. What stands before and behind it is kept, as
    the first such event has it: to make and encode each anew would take several times as long.
    """

    def __init__(self, shape: Shape, options: StreamOptions, record: Record) -> None:
        self.shape = shape
        self.options = options
        self.record = record
        self._alike = shape.plain and not (options.continuous_usage_stats or options.include_obfuscation)
        self._around: dict[int, tuple[bytes, bytes]] = {}  # by the choice's index

    def of(self, delta: Delta) -> bytes:
        """All events that tell `delta`; none where nothing is to be told."""
        if not (self._alike and delta.only_text):
            return b"".join([event(chunk, self.options, self.record) for chunk in self.shape.chunks(delta)])
        around = self._around.get(delta.index)
        if around is None:
            around = self._around[delta.index] = self._about(delta.index)
        before, behind = around
        return before + encode(delta.text) + behind

    def _about(self, index: int) -> tuple[bytes, bytes]:
        """What is before and behind the text in the events of choice `index` that tell nothing but text."""
        (chunk,) = self.shape.chunks(Delta(index, text=MARK))
        before, behind = event(chunk, self.options, self.record).split(encode(MARK))
        return before, behind


def failure(error: Exception, record: Record) -> ApiError:
    """What the client of a stream is told about an exception, which is logged where it was not foreseen."""
    api_error = as_api_error(error)
    record.fail(api_error)
    if api_error.status == 500:
        logger.exception("request %s failed while it streamed", record.request_id)
    return api_error


def event(chunk: dict[str, Any], options: StreamOptions, record: Record) -> bytes:
    if options.continuous_usage_stats:
        chunk["usage"] = record.usage()
    elif options.include_usage:
        chunk["usage"] = None
    data = msgspec.json.encode(chunk)
    return frame(padded(data) if options.include_obfuscation else data)


def frame(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def padded(data: bytes) -> bytes:
    """The JSON object with a field of random letters that brings it to the next multiple of `PADDED_TO` bytes."""
    opening, closing = b',"obfuscation":"', b'"}'
    missing = -(len(data) - 1 + len(opening) + len(closing)) % PADDED_TO
    return data[:-1] + opening + "".join(secrets.choice(LETTERS) for _ in range(missing)).encode() + closing
