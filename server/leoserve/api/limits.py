"""What surrounds every request: its id, its line in the log, and a bound on its body.

Pure ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leoserve.api.errors import ApiError
from leoserve.api.record import Record

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestId:
    """Puts `x-request-id` on every response: the client's own when it is short and plain, else a new one.

    At the end of a request, stream and all, it closes the record that the route left in `request.state.record`.
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

        status = 500  # until a response starts: so it stays when the app fails

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            record: Record | None = scope["state"].get("record")
            if record is not None:
                record.close(status)


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
