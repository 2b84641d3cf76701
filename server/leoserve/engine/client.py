"""The engine as the API process sees it: start it, send requests, receive tokens, notice its death, start it again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Literal

from leoserve.engine.config import EngineConfig
from leoserve.engine.connection import Connection
from leoserve.engine.request import (
    Abort,
    EngineStats,
    FromEngine,
    Ready,
    RefusalKind,
    Refused,
    Request,
    StepOutputs,
    TokenOutput,
    TokenTable,
)

log = logging.getLogger("leoserve.engine")

State = Literal["loading", "ready", "restarting", "draining", "failed"]
LONGEST_BACKOFF = 30.0  # seconds between two attempts to restart an engine that does not come up
STABLE_AFTER = 60.0  # seconds of serving after which a death counts as the first one again
HOPELESS_AFTER = 5  # starts in a row that failed: from then on the server is not healthy


class EngineError(Exception):
    """Something between a request and its tokens."""


class EngineRefused(EngineError):
    """The engine did not admit the request.

    `kind`: "overloaded" (try later), "never_fits" (never will), or "invalid_grammar"; `param`: the field at fault.
    """

    def __init__(self, kind: RefusalKind, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param


class EngineUnavailable(EngineError):
    """Nothing is admitted now. `retry_after`: seconds."""

    def __init__(self, state: State, retry_after: int) -> None:
        super().__init__(f"the engine is {state}")
        self.state = state
        self.retry_after = retry_after


class EngineDied(EngineError):
    """The engine's process ended while the request was running."""


class EngineFailed(EngineError):
    """The engine cannot start; the message says what to do."""


class _Stream:
    """What one request still waits for, and what has come for it. Has one reader."""

    __slots__ = ("_come", "_waiting", "aborted", "open")

    def __init__(self, choices: int) -> None:
        self.open = set(range(choices))
        self.aborted = False
        self._come: deque[TokenOutput | EngineError | None] = deque()
        self._waiting: asyncio.Future[None] | None = None  # the reader, where it has nothing to read

    def put(self, item: TokenOutput | EngineError | None) -> None:
        self._come.append(item)
        if self._waiting is not None:
            if not self._waiting.done():
                self._waiting.set_result(None)
            self._waiting = None

    async def get(self) -> TokenOutput | EngineError | None:
        """Does not suspend where something has come; an `asyncio.Queue` takes several times as long."""
        while not self._come:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._come.popleft()


class EngineClient:
    """One engine process and the requests it works on. All methods but `spawn` belong to the event loop."""

    def __init__(self, config: EngineConfig, *, tokens: TokenTable | None = None, stall_timeout: float = 300.0) -> None:
        """`tokens`: what requests with grammars need."""
        self.config = config
        self.tokens = tokens
        self.stall_timeout = stall_timeout
        self.state: State = "loading"
        self.ready: Ready | None = None
        self.stats = EngineStats()
        self.failure: str | None = None
        self.restarts = 0
        self.on_step: Callable[[EngineStats], None] | None = None  # told of every step
        self._streams: dict[str, _Stream] = {}
        self._connection: Connection | None = None
        self._restart: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # set, and replaced, at every change of state
        self._stopping = False
        self._ready_at: float | None = None  # of the engine that runs now
        self._failed_starts = 0
        self._backoff = 0.0
        self._unanswered: tuple[str, float] | None = None  # a request, and since when no step has finished for it

    @property
    def pid(self) -> int | None:
        """Of the engine's process; None while there is none."""
        return None if self._connection is None else self._connection.process.pid

    @property
    def in_flight(self) -> int:
        """Choices that were sent and have not ended."""
        return sum(len(stream.open) for stream in self._streams.values())

    @property
    def healthy(self) -> bool:
        """False when work has waited for `stall_timeout` seconds without a step, or the engine cannot start."""
        if self.state == "failed" or self._failed_starts >= HOPELESS_AFTER:
            return False
        return self._unanswered is None or time.monotonic() - self._unanswered[1] < self.stall_timeout

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

    def abandon(self, message: str) -> None:
        """End all requests with EngineDied."""
        for stream in self._streams.values():
            stream.put(EngineDied(message))

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

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        """All choices' outputs as they come. Closing the generator aborts what still runs.

        Raises EngineUnavailable or EngineRefused before the first output, EngineDied after or before it.
        """
        if self.state != "ready" or self._connection is None:
            raise EngineUnavailable(self.state, retry_after=5 if self.state == "loading" else 2)
        if request.request_id in self._streams:
            raise ValueError(f"request id {request.request_id!r} is in use")
        stream = self._streams[request.request_id] = _Stream(request.params.n)
        try:
            if not self._connection.send(request):
                raise EngineDied("the engine is gone")
            self._unanswered = self._unanswered or (request.request_id, time.monotonic())
            while stream.open:
                item = await stream.get()
                if isinstance(item, EngineError):
                    stream.open.clear()
                    raise item
                if item is None or item.index not in stream.open:
                    continue
                if item.finish_reason is not None:
                    stream.open.discard(item.index)
                yield item
        finally:
            self._streams.pop(request.request_id, None)
            # After an abort the clock of a stall runs on: the engine has yet to take note.
            if stream.open:
                self._send_abort(Abort(request_id=request.request_id))
            elif not stream.aborted:
                self._answered(request.request_id)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one choice of it: `generate` yields no more of it."""
        stream = self._streams.get(request_id)
        if stream is None:
            return
        stream.aborted = True
        if index is None:
            stream.open.clear()
        else:
            stream.open.discard(index)
        stream.put(None)
        self._send_abort(Abort(request_id=request_id, index=index))

    def _answered(self, request_id: str) -> None:
        """This request waits for no step any more; whether another does, the clock of a stall has to say."""
        if self._unanswered is not None and self._unanswered[0] == request_id:
            other = next((name for name in self._streams if name != request_id), None)
            self._unanswered = None if other is None else (other, self._unanswered[1])

    def _send_abort(self, abort: Abort) -> None:
        if self._connection is not None:
            self._connection.send(abort)  # an engine that is gone works on nothing

    def _listen(self) -> None:
        connection = self._connection
        if connection is None:
            raise RuntimeError("no engine was spawned")
        loop = asyncio.get_running_loop()
        connection.listen(loop, self._take)
        watcher = threading.Thread(target=self._watch, args=(connection, loop), name="engine-watcher", daemon=True)
        watcher.start()

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, StepOutputs):
            self._unanswered = (next(iter(self._streams)), time.monotonic()) if self._streams else None
            stepped, self.stats = message.stats.steps != self.stats.steps, message.stats
            if stepped and self.on_step is not None:
                self.on_step(message.stats)
            for output in message.outputs:
                stream = self._streams.get(output.request_id)
                if stream is not None:
                    stream.put(output)
        elif isinstance(message, Refused):
            self._answered(message.request_id)
            stream = self._streams.get(message.request_id)
            if stream is not None:
                stream.put(EngineRefused(message.kind, message.message, message.param))
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
        self.abandon(f"{self.failure} and is being restarted")
        self._unanswered = None
        if served is None:
            self._failed_starts += 1
        elif time.monotonic() - served > STABLE_AFTER:
            self._backoff = 0.0
        log.error("%s; restarting it in %g s", self.failure, self._backoff)
        if self.state != "draining":
            self._enter("restarting")
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


def _why(code: int) -> str:
    return " (killed: the system may be out of memory)" if code == -9 else ""
