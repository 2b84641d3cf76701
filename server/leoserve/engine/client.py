"""The engine as the API process sees it: start it, send requests, receive tokens, notice its death, start it again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from leoserve.engine.config import EngineConfig
from leoserve.engine.connection import Connection
from leoserve.engine.request import EngineStats, FromEngine, Ready, Refused, StepOutputs, ToEngine, TokenTable
from leoserve.engine.streams import (
    EngineDied,
    EngineError,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    State,
    Streams,
    stalled,
)

__all__ = ["EngineClient", "EngineDied", "EngineError", "EngineFailed", "EngineRefused", "EngineUnavailable", "State"]

log = logging.getLogger("leoserve.engine")

LONGEST_BACKOFF = 30.0  # seconds between two attempts to restart an engine that does not come up
STABLE_AFTER = 60.0  # seconds of serving after which a death counts as the first one again
HOPELESS_AFTER = 5  # starts in a row that failed: from then on the server is not healthy


class EngineClient(Streams):
    """One engine process and the requests it works on. All methods but `spawn` belong to the event loop."""

    def __init__(self, config: EngineConfig, *, tokens: TokenTable | None = None, stall_timeout: float = 300.0) -> None:
        """`tokens`: what requests with grammars need."""
        super().__init__()
        self.config = config
        self.tokens = tokens
        self.stall_timeout = stall_timeout
        self.stats = EngineStats()
        self.failure: str | None = None
        self.restarts = 0
        self.on_step: Callable[[EngineStats], None] | None = None  # told of every step
        self.on_news: Callable[[], None] | None = None  # told whenever anything here may have changed by the engine
        self._connection: Connection | None = None
        self._restart: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # set, and replaced, at every change of state
        self._stopping = False
        self._ready_at: float | None = None  # of the engine that runs now
        self._failed_starts = 0
        self._backoff = 0.0

    @property
    def pid(self) -> int | None:
        """Of the engine's process; None while there is none."""
        return None if self._connection is None else self._connection.process.pid

    @property
    def hopeless(self) -> bool:
        """Whether the engine cannot start, or cannot any more."""
        return self.state == "failed" or self._failed_starts >= HOPELESS_AFTER

    @property
    def healthy(self) -> bool:
        """False when work has waited for `stall_timeout` seconds without a step, or the engine cannot start."""
        return not self.hopeless and not stalled(self.unanswered_since, self.stall_timeout)

    def spawn(self) -> None:
        """Start the engine's process. Needs no event loop, so that it can load while the API process still imports."""
        self.failure = None
        self._connection = Connection(self.config)

    async def start(self) -> None:
        """Begin to listen to the engine, and to watch over it."""
        if self._connection is None:
            self.spawn()
        self._listen()

    async def wait_ready(self) -> Ready:
        """Until the engine serves. Raises EngineFailed when it cannot."""
        while self.ready is None:
            if self.state == "failed":
                raise EngineFailed(self.failure or "the engine could not start")
            await self._changed.wait()
        return self.ready

    async def drain(self, grace: float) -> bool:
        """Admit nothing more and wait for what runs, at most `grace` seconds, and not for an engine that hangs. True
        when everything had its end."""
        self._enter("draining")
        deadline = time.monotonic() + grace
        while self._streams and self.healthy and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        finished = not self._streams
        self.abandon("the server is shutting down")
        return finished

    async def stop(self) -> None:
        """End the engine's process and remove its sockets. Requests still running get EngineDied."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
        self.abandon("the server is shutting down")
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.hang_up()
            await asyncio.to_thread(connection.end)

    def _send(self, message: ToEngine) -> bool:
        return self._connection is not None and self._connection.send(message)

    def _listen(self) -> None:
        connection = self._connection
        if connection is None:
            raise RuntimeError("no engine was spawned")
        loop = asyncio.get_running_loop()
        connection.listen(loop, self._take)
        watcher = threading.Thread(target=self._watch, args=(connection, loop), name="engine-watcher", daemon=True)
        watcher.start()
        self._tell()

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, StepOutputs):
            self._stepped()
            stepped, self.stats = message.stats.steps != self.stats.steps, message.stats
            if stepped and self.on_step is not None:
                self.on_step(message.stats)
            self._hand_out(message.outputs)
        elif isinstance(message, Refused):
            self._refuse(message)
        elif isinstance(message, Ready):
            if self.tokens is not None and self._connection is not None:
                self._connection.send(self.tokens)
            self.ready = message
            self._ready_at = time.monotonic()
            self._failed_starts = 0
            if self.restarts:
                log.info("the engine serves again")
            if self.state != "draining":
                self._enter("ready")
        else:
            self.failure = message.message
        self._tell()

    def _watch(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: wait for the process to end, and tell the event loop."""
        code = connection.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended meanwhile
            loop.call_soon_threadsafe(self._ended, connection, code)

    def _ended(self, connection: Connection, code: int) -> None:
        if self._stopping or connection is not self._connection:
            return
        connection.drain(self._take)  # its last words
        self._connection = None
        connection.hang_up()
        served, self._ready_at = self._ready_at, None
        self.failure = self.failure or f"the engine ended with code {code}{_why(code)}"
        if self.ready is None:
            self._enter("failed")
            return
        goes_on = self.state != "draining"
        if goes_on:  # before anyone is told: whose answer has failed finds the server not ready
            self._enter("restarting")
        self.abandon(f"{self.failure} and is being restarted")
        self._unanswered = None
        if served is None:
            self._failed_starts += 1
        elif time.monotonic() - served > STABLE_AFTER:
            self._backoff = 0.0
        log.error("%s; restarting it in %g s", self.failure, self._backoff)
        if goes_on:
            self._restart = asyncio.get_running_loop().create_task(self._respawn())

    async def _respawn(self) -> None:
        """Try until a process is there. Whether it comes to serve is another matter: `_ended` sees to it."""
        while self._connection is None:
            await asyncio.sleep(self._backoff)
            self._backoff = min(LONGEST_BACKOFF, 2 * self._backoff + 0.5)
            self.restarts += 1
            self.stats = EngineStats()
            try:
                self.spawn()
            except OSError as error:
                self._failed_starts += 1
                log.error("the engine cannot be started: %s; trying again in %g s", error, self._backoff)
        self._listen()

    def _enter(self, state: State) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()
        self._tell()

    def _tell(self) -> None:
        if self.on_news is not None:
            self.on_news()


def _why(code: int) -> str:
    return " (killed: the system may be out of memory)" if code == -9 else ""
