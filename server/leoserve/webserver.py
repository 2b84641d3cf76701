"""The HTTP server of one process: uvicorn with bounded connections, and without signal handlers of its own."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from leoserve.api.connection import RESERVE, Connection
from leoserve.settings import Settings

logger = logging.getLogger("leoserve")

FLUSH_SECONDS = 5  # how long the last bytes of ended answers may take to leave
OTHER_FILES = 128  # that this process has open beside its connections
KEEP_ALIVE_SECONDS = 75  # an idle connection's life; longer than the usual proxy keeps its own, so that it closes first
LAST_WORDS_SECONDS = 1  # for the error events of answers that a second signal cuts off


class WebServer(uvicorn.Server):
    """uvicorn without its signal handlers: they would close the door, where the lifecycle first answers 503 at it."""

    def __init__(self, config: uvicorn.Config, tick: Callable[[], None] | None = None) -> None:
        """`tick`: called ten times a second while it serves."""
        super().__init__(config)
        self._tick = tick

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        if self._tick is not None:
            self._tick()
        return await super().on_tick(counter)

    async def answering(self) -> None:
        """Its socket has been listening since before the engine was started: whoever came since waits there."""

    def hurry(self) -> None:
        """End now: only an error event may still leave."""
        logging.getLogger("uvicorn.error").disabled = True  # what it would say now is that, in tracebacks
        self.config.timeout_graceful_shutdown = LAST_WORDS_SECONDS
        self.should_exit = True


def web_server(
    app: FastAPI, settings: Settings, tick: Callable[[], None] | None = None, *, tell: bool = True
) -> WebServer:
    """A server of `app`. The limit of open files is raised for it; `tell`: log that it cannot be raised far enough."""
    config = uvicorn.Config(
        app,
        http=Connection,
        limit_concurrency=connections(settings.max_connections, tell=tell),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    return WebServer(config, tick)


def connections(wanted: int, *, tell: bool = True) -> int:
    """How many connections can be served: `wanted`, for which this process's limit of open files is raised as far as
    needed, or fewer where the system allows no more."""
    needed = wanted + RESERVE + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    served = max(1, min(wanted, allowed - RESERVE - OTHER_FILES))
    if served < wanted and tell:
        logger.warning("%d connections are served, not %d: the system allows %d open files", served, wanted, allowed)
    return served
