"""What both endpoints do with a request once its body is checked, and how an answer gets to the client."""

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
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from leoserve.api.context import ServerContext, context_of
from leoserve.api.errors import ApiError, as_api_error, bad_request, model_not_found, unavailable
from leoserve.api.generation import Generation, unless_gone
from leoserve.api.protocol.base import SamplingFields, StreamOptions
from leoserve.api.protocol.body import warning_headers
from leoserve.api.record import Record
from leoserve.api.stream import Delta

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
PLAIN = StreamOptions.model_validate({})
PADDED_TO = 128  # bytes: the chunk sizes that `include_obfuscation` lets an observer tell apart
LETTERS = string.ascii_letters + string.digits
FAREWELL = 5.0  # seconds a stream may outlive the shutdown grace, to say why it ends
Tell = Callable[[Delta, AsyncGenerator[Delta, None]], AsyncGenerator[bytes, None]]  # the bytes of each event


class WholeShape(Protocol):
    """How one endpoint tells an answer in one piece. It sees every delta once."""

    def add(self, delta: Delta) -> None: ...
    def whole(self) -> dict[str, Any]: ...


class Shape(WholeShape, Protocol):
    """How one endpoint tells an answer. It sees every delta once, as a chunk or for the whole."""

    def chunks(self, delta: Delta) -> Iterable[dict[str, Any]]: ...
    def usage_chunk(self) -> dict[str, Any]: ...


def begin(request: HttpRequest, endpoint: str) -> Record:
    """The record of a request that has just arrived."""
    context = context_of(request)
    record = Record(
        context.metrics,
        request.state.request_id,
        endpoint,
        charge=request.state.charge,
        timeout=context.settings.request_timeout,
    )
    request.state.record = record
    return record


def check_servable(context: ServerContext, body: SamplingFields, choices: int) -> None:
    """Raises ApiError when the model is not served, the server not ready, or too many answers are wanted."""
    check_served(context, body.model)
    if choices > context.settings.max_choices:
        param = "n" if body.n == choices else "best_of"
        raise bad_request(f"Invalid '{param}': At most {context.settings.max_choices} answers to a prompt.", param)


def check_served(context: ServerContext, model: str) -> None:
    """Raises ApiError when the model is not served or the server not ready."""
    if model not in context.model_ids:
        raise model_not_found(model, context.model_ids)
    if context.engine.ready is None:
        raise unavailable(context.engine.state, 5)


def cache_salt(request: HttpRequest, body: SamplingFields) -> str:
    """Requests with different keys never share cached prompts, nor do those of different `cache_salt`."""
    key_hash: bytes | None = request.state.key_hash
    return f"{key_hash.hex()[:32] if key_hash else ''}:{body.cache_salt or ''}"


async def send_whole(request: HttpRequest, generation: Generation, shape: WholeShape) -> Response:
    """One JSON response, when everything is there."""

    async def collect() -> None:
        async with aclosing(generation.deltas()) as deltas:
            async for delta in deltas:
                shape.add(delta)

    await unless_gone(request, collect())
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
    settings = generation.context.settings
    deltas = generation.deltas()
    first = await unless_gone(request, anext(deltas))
    return EventSourceResponse(
        tell(first, deltas),
        headers={"Cache-Control": "no-cache", **warning_headers(request)},
        sep="\n",
        ping=settings.keep_alive,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
        shutdown_grace_period=settings.shutdown_grace + FAREWELL,
    )


async def events(
    generation: Generation, shape: Shape, options: StreamOptions, first: Delta, deltas: AsyncGenerator[Delta, None]
) -> AsyncGenerator[bytes, None]:
    """The events of a stream, each as its bytes. An error becomes an event; the last one is always [DONE]."""
    record = generation.record
    try:
        async with aclosing(deltas):
            for chunk in shape.chunks(first):
                yield event(chunk, options, record)
            async for delta in deltas:
                for chunk in shape.chunks(delta):
                    yield event(chunk, options, record)
        if options.include_usage:
            yield frame(msgspec.json.encode(shape.usage_chunk() | {"usage": record.usage()}))
    except Exception as error:
        yield frame(msgspec.json.encode(failure(error, record).body()))
    yield DONE


def failure(error: Exception, record: Record) -> ApiError:
    """What the client of a stream is told about an exception, which is logged where it was not foreseen."""
    api_error = as_api_error(error)
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
