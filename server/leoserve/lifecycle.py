"""A server from its first connection to its last: readiness, signals, draining, exit code.

The first SIGINT or SIGTERM stops admitting: new requests get 503 and `/ready` is false, while running answers may
finish within the grace; then the exit code is 0. A second signal ends at once, with 128 plus its number.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Protocol

import uvloop

from leoserve.api.threads import TextThreads
from leoserve.engine.client import EngineClient, EngineFailed
from leoserve.engine.request import Ready

logger = logging.getLogger("leoserve")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(
    front: Front,
    engine: EngineClient,
    listeners: list[socket.socket],
    grace: float,
    announce: Callable[[Ready], None],
) -> int:
    """Answer on `listeners` until a signal or the engine's failure ends it. `announce` is called once, when ready.

    `grace`: seconds that running answers have after a signal. Returns the exit code: 0 after a signal, 128 plus its
    number after a second one. Raises EngineFailed, and what `front` does.
    """
    lifecycle = Lifecycle(front, engine, grace, announce)
    freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(lifecycle.live(listeners))


def freeze() -> None:
    """All that the imports have made stays to the end. Python would look through it again and again for garbage, for
    tens of milliseconds in which no token moves. It is done while the engine loads its weights."""
    gc.collect()
    gc.freeze()


def leave(code: int, threads: TextThreads | None) -> int:
    """The exit code of a server that has cleaned up. Where a thread is still at work on a text that nobody waits for,
    the process ends here: Python would let it come to its end first."""
    if threads is not None and threads.busy:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class Front(Protocol):
    """What answers clients: the web server of this process, or several processes with one each."""

    should_exit: bool

    async def serve(self, sockets: list[socket.socket]) -> None:
        """Answer until `should_exit` is set, and then let what has ended leave."""

    async def answering(self) -> None:
        """Wait until it answers, or has failed."""

    def hurry(self) -> None:
        """End now: only an error event may still leave."""


class Lifecycle:
    """What happens to the server when, and with which exit code it ends."""

    def __init__(self, front: Front, engine: EngineClient, grace: float, announce: Callable[[Ready], None]) -> None:
        self.front = front
        self.engine = engine
        self.grace = grace
        self.announce = announce
        self.exit_code = 0
        self.failure: EngineFailed | None = None
        self.draining: asyncio.Task[None] | None = None

    async def live(self, listeners: list[socket.socket]) -> int:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.on_signal, number)
        await self.engine.start()
        watching = loop.create_task(self.watch())
        try:
            await self.front.serve(listeners)
        finally:
            for task in (watching, self.draining):
                if task is not None:
                    task.cancel()
            await self.engine.stop()
        if self.failure is not None:
            raise self.failure
        if self.draining is not None and self.draining.done() and not self.draining.cancelled():
            self.draining.result()  # raises what went wrong in it
        return self.exit_code

    async def watch(self) -> None:
        """Announce the engine when it is ready; end the server when it can never be."""
        try:
            ready = await self.engine.wait_ready()
            await self.front.answering()
            self.announce(ready)
        except EngineFailed as error:
            self.failure = error
            self.front.should_exit = True

    def on_signal(self, number: int) -> None:
        if self.draining is None:
            self.draining = asyncio.get_running_loop().create_task(self.drain())
            return
        self.exit_code = 128 + number
        self.draining.cancel()
        logger.warning("stopping at once; answers cut off: %d", self.engine.in_flight)
        self.engine.abandon("the server is shutting down")
        self.front.hurry()

    async def drain(self) -> None:
        """Let running answers finish within the grace, then end the server."""
        running = self.engine.in_flight
        more = f"; running answers: {running}; they have {self.grace:g} s, a second signal ends them at once"
        logger.info("stopping%s", more if running else "")
        try:
            await self.engine.drain(self.grace)
            await self.engine.stop()  # what still runs gets an error event
        finally:
            self.front.should_exit = True
