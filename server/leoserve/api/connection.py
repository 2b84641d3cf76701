"""One client's connection: bounds on what it may send before anyone has looked at its key, and on their number.

The HTTP server beneath bounds neither the size of a request's head nor the time it takes, and it tells its own errors
as plain text.
"""

from __future__ import annotations

import asyncio
import uuid
from http import HTTPStatus
from typing import Any, Literal

import httptools
import msgspec
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from leoserve.api.errors import ApiError, bad_request, error_response, rejection
from leoserve.api.limits import WATCHING, RequestId
from leoserve.metrics import Metrics

MAX_HEAD_BYTES = 1 << 16  # of the URL and all header and trailer fields
MAX_FIELDS = 256
HEAD_SECONDS = 30.0  # from the first byte of a request, or the connection's begin, to the end of its head
BODY_SECONDS = 300.0  # from there to the end of the body
LINGER_SECONDS = 2.0  # how long a refused client may send on before it is cut off, so that it sees the refusal
RESERVE = 256  # connections beyond the limit, for those who watch over the server
WATCHED = frozenset(path.encode() for path in WATCHING)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with bounds. `limit_concurrency` of its configuration is how many connections are served;
    those beyond it are told to come back, except on the routes that watch over the server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_connections = self.limit_concurrency
        self.limit_concurrency = None  # uvicorn's own check, which would answer /health in plain text, too
        self._served = self.app
        self._too_many = False
        self._phase: Literal["idle", "head", "body"] = "idle"
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of the fields that are complete
        self._fields = 0
        self._bodiless = False  # what answers this request, which is a HEAD
        self._fruitless = 0  # bytes received since the last that brought a message further
        self._heard = False
        self._fault: ApiError | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(HEAD_SECONDS)
        self._tell_connections()
        if self.max_connections is not None:
            open_now = len(self.connections) if self.metrics is None else self.metrics.connections
            beyond = open_now - self.max_connections
            self._too_many = beyond > 0
            if beyond > RESERVE:
                transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        self._tell_connections()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._phase == "idle":
            self._begin_head()
        self._heard = False
        super().data_received(data)
        if not self._heard:
            # No part of a body, no begin or end: an unfinished field, which the parser keeps until it is complete.
            self._fruitless += len(data)
            if self._fruitless > MAX_HEAD_BYTES:
                self._refuse(head_too_large())

    def on_message_begin(self) -> None:
        self._progress()
        self._head_bytes = self._fields = 0
        self._bodiless = False
        if self._phase == "idle":
            self._begin_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        self._bodiless = self.parser.get_method() == b"HEAD"
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._progress()
        watching = httptools.parse_url(self.url).path in WATCHED
        self.app = self._served if watching or not self._too_many else self._served_later
        super().on_headers_complete()
        self._phase = "body"  # and `cycle` is this request's
        self._arm(BODY_SECONDS)

    def on_body(self, body: bytes) -> None:
        self._progress()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress()
        self._phase = "idle"
        self._disarm()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read, or a callback has refused."""
        self._refuse(self._fault or bad_request(msg))

    async def _served_later(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = too_many_connections()
        self._reject(error)
        await RequestId(error_response(error))(scope, receive, send)

    def _count(self, size: int) -> None:
        """Raises ApiError, which the parser turns into its own error, when the head has grown too large."""
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or self._fields > MAX_FIELDS:
            self._fault = head_too_large()
            raise self._fault

    @property
    def metrics(self) -> Metrics | None:
        """Where the application counts, if it has said so."""
        return self.app_state.get("metrics")

    def _reject(self, error: ApiError) -> None:
        if self.metrics is not None:
            self.metrics.rejected(rejection(error))

    def _tell_connections(self) -> None:
        if self.metrics is not None:
            self.metrics.connected(len(self.connections), self.max_connections)

    def _progress(self) -> None:
        self._heard = True
        self._fruitless = 0

    def _begin_head(self) -> None:
        self._phase = "head"
        self._arm(HEAD_SECONDS)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    @property
    def _answering_another(self) -> bool:
        """An earlier request's answer is not complete; until it is, what follows need not be read on."""
        if self._phase == "body":
            return bool(self.pipeline)
        return self.cycle is not None and not self.cycle.response_complete

    def _too_slow(self) -> None:
        if self._phase == "idle":
            self.transport.close()  # not a byte came: there is nothing to answer
        elif self._answering_another:
            self._arm(BODY_SECONDS if self._phase == "body" else HEAD_SECONDS)
        else:
            self._refuse(ApiError(408, "The request did not come to its end in time.", code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Answer with `error`, unless another answer is due before or this one has begun, and take no more from this
        client."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        answered = self._phase == "body" and self.cycle.response_started
        if not answered:
            self._reject(error)
        if answered or self._answering_another:
            self.transport.close()
            return
        if self._phase == "body":
            # The application, which waits for the rest of this body, has no more to say than that this was the end.
            self.cycle.scope["state"]["refused"] = error
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self.metrics is not None:
            self.metrics.responded(error.status)
        self._send_last(error)

    def _send_last(self, error: ApiError) -> None:
        """Write `error` and end what this side sends."""
        body = msgspec.json.encode(error.body())
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", f"req_{uuid.uuid4().hex}".encode()),
            (b"connection", b"close"),
        ]
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
        lines += [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join([*lines, b"", b"" if self._bodiless else body]))
        self.transport.write_eof()
        self._disarm()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)


def head_too_large() -> ApiError:
    message = f"The request's header is larger than this server takes ({MAX_HEAD_BYTES} bytes, {MAX_FIELDS} fields)."
    return ApiError(431, message, code="header_too_large")


def too_many_connections() -> ApiError:
    return ApiError(
        503,
        "The server has as many connections as it takes. Try again in 1 s.",
        type="server_error",
        code="service_unavailable",
        headers={"Retry-After": "1", "Connection": "close"},
    )
