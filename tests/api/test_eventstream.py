"""A stream of events as an ASGI response: what it sends, in which order, and what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from leoserve.api.eventstream import KEEP_ALIVE, EventStream


class Connection:
    """Where the messages go. A comment is not taken until `room` is set."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.closed = 0
        self.commented = asyncio.Event()
        self.room = asyncio.Event()

    async def send(self, message: Any) -> None:
        if message.get("body") == KEEP_ALIVE:
            self.commented.set()
            await self.room.wait()
        self.messages.append(message)

    def close(self) -> None:
        self.closed += 1

    async def run(self, events: AsyncGenerator[bytes, None], keep_alive: float = 1e6) -> None:
        async def receive() -> Any:
            raise AssertionError("who makes the events looks after the client")

        stream = EventStream(events, keep_alive=keep_alive, headers={"x-more": "1"}, closed=self.close)
        await stream({"type": "http"}, receive, self.send)


async def test_the_headers_go_first_then_every_event_by_itself_then_the_end() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"

    connection = Connection()
    await connection.run(events())
    start, *bodies = connection.messages
    assert (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
    assert (b"x-more", b"1") in start["headers"]
    assert not [name for name, _ in start["headers"] if name == b"content-length"]
    assert [(body["body"], body["more_body"]) for body in bodies] == [
        (b"data: 1\n\n", True),
        (b"data: 2\n\n", True),
        (b"", False),
    ]
    assert connection.closed == 1


async def test_a_comment_that_still_waits_for_a_slow_client_at_the_end_is_never_sent() -> None:
    connection = Connection()

    async def events() -> AsyncGenerator[bytes, None]:
        await connection.commented.wait()
        yield b"data: 1\n\n"

    await connection.run(events(), keep_alive=0.001)
    connection.room.set()
    await asyncio.sleep(0)
    assert [message.get("body") for message in connection.messages] == [None, b"data: 1\n\n", b""]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_silence_is_broken_again_and_again() -> None:
    connection = Connection()
    connection.room.set()

    async def events() -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            await connection.commented.wait()
            connection.commented.clear()
        yield b"data: 1\n\n"

    await connection.run(events(), keep_alive=0.001)
    assert [message.get("body") for message in connection.messages][1:4] == [KEEP_ALIVE] * 3


@pytest.mark.parametrize("cancel", [True, False])
async def test_whatever_ends_it_closes_the_events_and_says_so(cancel: bool) -> None:
    connection = Connection()
    begun, closed = asyncio.Event(), asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: 1\n\n"
            begun.set()
            if not cancel:
                raise RuntimeError
            await asyncio.Event().wait()
        finally:
            closed.set()

    task = asyncio.create_task(connection.run(events()))
    await begun.wait()
    if cancel:
        task.cancel()
    with pytest.raises(asyncio.CancelledError if cancel else RuntimeError):
        await task
    assert closed.is_set()
    assert connection.closed == 1
    assert connection.messages[-1]["more_body"], "an answer that was cut off must not look complete"
