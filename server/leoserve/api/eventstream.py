"""Server-sent events as a response: each goes to the connection as it comes, from the request's own task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"Cache-Control": "no-cache", "Connection": "keep-alive", "X-Accel-Buffering": "no"}  # proxies hold nothing


class EventStream(Response):
    """`events`: the bytes of one or several whole events at a time. After `keep_alive` seconds of silence a comment is
    sent. `closed` is called at the end, however that comes.

    A client that goes away does not end it by itself: whoever makes the events has to notice.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        keep_alive: float,
        headers: Mapping[str, str],
        closed: Callable[[], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**HEADERS, **headers})
        self.events = events
        self.keep_alive = keep_alive
        self.closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self.events):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                silence = Silence(send, self.keep_alive)
                try:
                    async for data in self.events:
                        silence.begin()
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                finally:
                    silence.end()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.closed()


class Silence:
    """Breaks the silence on a stream with a comment, `keep_alive` seconds after it began. An event moves a time and no
    timer: the timer looks at the time when it goes off."""

    def __init__(self, send: Send, keep_alive: float) -> None:
        self._send = send
        self._keep_alive = keep_alive
        self._loop = asyncio.get_running_loop()
        self._comment: asyncio.Task[None] | None = None
        self.begin()
        self._timer = self._loop.call_at(self._since + keep_alive, self._look)

    def begin(self) -> None:
        """Something is sent now."""
        self._since = self._loop.time()

    def end(self) -> None:
        """No comment from now on, not even one that waits for a slow client."""
        self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()

    def _look(self) -> None:
        if self._loop.time() >= self._since + self._keep_alive:
            self.begin()
            if self._comment is None or self._comment.done():
                message = {"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True}
                self._comment = self._loop.create_task(self._say(message))
        self._timer = self._loop.call_at(self._since + self._keep_alive, self._look)

    async def _say(self, message: dict[str, object]) -> None:
        await self._send(message)
