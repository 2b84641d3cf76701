"""A server from its first connection to its last: readiness, signals, draining, exit code.

The first SIGINT or SIGTERM stops admitting: new requests get 503 and `/ready` is false, while running answers may
finish within the grace; then the exit code is 0. A second signal ends at once, with 128 plus its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from leoserve.api.connection import RESERVE, Connection
from leoserve.api.threads import TextThreads
from leoserve.engine.client import EngineClient, EngineFailed
from leoserve.engine.request import Ready
from leoserve.settings import Settings

logger = logging.getLogger("leoserve")

FLUSH_SECONDS = 5  # how long the last bytes of ended answers may take to leave
OTHER_FILES = 128  # that this process has open beside its connections
KEEP_ALIVE_SECONDS = 75  # an idle connection's life; longer than the usual proxy keeps its own, so that it closes first
LAST_WORDS_SECONDS = 1  # for the error events of answers that a second signal cuts off
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(
    app: FastAPI,
    engine: EngineClient,
    listener: socket.socket,
    settings: Settings,
    announce: Callable[[Ready], None],
) -> int:
    """Answer on `listener` until a signal or the engine's failure ends it. `announce` is called once, when ready.

    Returns the exit code: 0 after a signal, 128 plus its number after a second one. Raises EngineFailed.
    """
    config = uvicorn.Config(
        app,
        http=Connection,
        limit_concurrency=connections(settings.max_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    lifecycle = Lifecycle(Server(config), engine, settings.shutdown_grace, announce)
    # All that the imports have made stays to the end. Python would look through it again and again for garbage, for
    # tens of milliseconds in which no token moves. It is done while the engine loads its weights.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(lifecycle.live(listener))


def connections(wanted: int) -> int:
    """How many connections can be served: `wanted`, for which this process's limit of open files is raised as far as
    needed, or fewer where the system allows no more."""
    needed = wanted + RESERVE + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    served = max(1, min(wanted, allowed - RESERVE - OTHER_FILES))
    if served < wanted:
        logger.warning("%d connections are served, not %d: the system allows %d open files", served, wanted, allowed)
    return served


def leave(code: int, threads: TextThreads) -> int:
    """The exit code of a server that has cleaned up. Where a thread is still at work on a text that nobody waits for,
    the process ends here: Python would let it come to its end first."""
    if threads.busy:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: they would close the door, where ours first answers 503 at it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Lifecycle:
    """What happens to the server when, and with which exit code it ends."""

    def __init__(self, server: Server, engine: EngineClient, grace: float, announce: Callable[[Ready], None]) -> None:
        self.server = server
        self.engine = engine
        self.grace = grace
        self.announce = announce
        self.exit_code = 0
        self.failure: EngineFailed | None = None
        self.draining: asyncio.Task[None] | None = None

    async def live(self, listener: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.on_signal, number)
        await self.engine.start()
        watching = loop.create_task(self.watch())
        try:
            await self.server.serve(sockets=[listener])
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
            self.announce(await self.engine.wait_ready())
        except EngineFailed as error:
            self.failure = error
            self.server.should_exit = True

    def on_signal(self, number: int) -> None:
        if self.draining is None:
            self.draining = asyncio.get_running_loop().create_task(self.drain())
            return
        self.exit_code = 128 + number
        self.draining.cancel()
        logger.warning("stopping at once; answers cut off: %d", self.engine.in_flight)
        self.engine.abandon("the server is shutting down")
        logging.getLogger("uvicorn.error").disabled = True  # what it would say now is that, in tracebacks
        self.server.config.timeout_graceful_shutdown = LAST_WORDS_SECONDS
        self.server.should_exit = True

    async def drain(self) -> None:
        """Let running answers finish within the grace, then end the server."""
        running = self.engine.in_flight
        more = f"; running answers: {running}; they have {self.grace:g} s, a second signal ends them at once"
        logger.info("stopping%s", more if running else "")
        try:
            await self.engine.drain(self.grace)
            await self.engine.stop()  # what still runs gets an error event
        finally:
            self.server.should_exit = True
