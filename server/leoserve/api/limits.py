"""What surrounds every request: its id, its line in the log, what it has spent, and a bound on its body.

Pure ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leoserve.api.errors import ApiError, error_response, unavailable
from leoserve.api.rates import Charge, header_names
from leoserve.api.record import Record
from leoserve.metrics import Metrics

EXPOSED = ["x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "x-leoserve-warning", *header_names()]
WATCHING = frozenset({"/health", "/ready", "/metrics"})  # routes for those who watch over the server
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestId:
    """Puts `x-request-id` on every response: the client's own when it is short and plain, else a new one; and what is
    left of the client's allowance.

    At the end of a request, stream and all, it closes the record that the route left in `request.state.record`, settles
    the charge in `request.state.charge`, and counts how the request ended. A request that the server's end cancels is
    told so; one whose connection was refused while its body came has the error in `request.state.refused`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        status = 0  # until a response starts

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                charge: Charge | None = scope["state"].get("charge")
                if charge is not None:
                    headers.update(charge.allowance.headers())
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if status:
                raise
            # Nothing but the server's end cancels a request, which would become a plain 500 after this.
            await error_response(unavailable("draining", 5))(scope, receive, send_with_id)
        finally:
            watching = scope["path"].removeprefix(scope.get("root_path", "")) in WATCHING
            close(scope["state"], status or 500, counted=not watching)


def close(state: dict[str, Any], status: int, *, counted: bool) -> None:
    """The request has ended: settle, count and log what it was."""
    record: Record | None = state.get("record")
    charge: Charge | None = state.get("charge")
    refused: ApiError | None = state.get("refused")
    if refused is not None:
        status = refused.status
    if charge is not None:
        computed = record is not None and record.outputs > 0
        charge.settle(record.prompt_tokens + record.generated_tokens if record is not None and computed else 0)
    if record is not None:
        if refused is not None:
            record.fail(refused)
        status = record.close(status)
    metrics: Metrics | None = state.get("metrics")
    if metrics is not None and counted:
        metrics.responded(status)


class BodyLimit:
    """Refuses a body over `max_bytes` with 413, when a route reads it: at once if its Content-Length says so, else as
    soon as it has grown past the limit."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        received = int(declared[:20]) if declared.isdecimal() else 0
        counted = received > 0

        async def limited_receive() -> Message:
            nonlocal received
            if received > self.max_bytes:
                raise self.too_large()
            message = await receive()
            if message["type"] == "http.request" and not counted:
                received += len(message.get("body", b""))
                if received > self.max_bytes:
                    raise self.too_large()
            return message

        await self.app(scope, limited_receive, send)

    def too_large(self) -> ApiError:
        # The HTTP server discards the rest of the body. Closing the connection instead would reset it, and a client
        # that is still sending would never see this answer.
        message = f"The request body is larger than this server takes ({self.max_bytes} bytes)."
        return ApiError(413, message, code="request_too_large")
