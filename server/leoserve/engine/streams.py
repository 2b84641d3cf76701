"""Requests on their way through an engine: what each still waits for, and what has come for it."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator
from typing import Literal, Protocol

from leoserve.engine.request import (
    Abort,
    Ready,
    RefusalKind,
    Refused,
    Request,
    ToEngine,
    TokenOutput,
)

State = Literal["loading", "ready", "restarting", "draining", "failed"]


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


class Stream(Protocol):
    """What one request still waits for, and where that goes.

    `open`: the choices that have not ended. `aborted`: whether any of them was given up.
    """

    open: set[int]
    aborted: bool

    def put(self, item: TokenOutput | EngineError | None) -> None:
        """An output, the error that ends the request, or None: `open` has become smaller."""


class Queue:
    """A stream with one reader."""

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


class Streams(ABC):
    """Requests that were sent to an engine, wherever that is, and have not ended. Belongs to the event loop."""

    def __init__(self) -> None:
        self.state: State = "loading"
        self.ready: Ready | None = None
        self._streams: dict[str, Stream] = {}
        self._unanswered: tuple[str, float] | None = None  # a request, and since when no step has finished for it

    @property
    def in_flight(self) -> int:
        """Choices that were sent and have not ended."""
        return sum(len(stream.open) for stream in self._streams.values())

    @property
    def unanswered_since(self) -> float | None:
        """Since when a request has waited without any step having finished; None while none does."""
        return None if self._unanswered is None else self._unanswered[1]

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        """All choices' outputs as they come. Closing the generator aborts what still runs.

        Raises EngineUnavailable or EngineRefused before the first output, EngineDied after or before it.
        """
        stream = Queue(request.params.n)
        self.begin(request, stream)
        try:
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
            self.end(request.request_id)

    def begin(self, request: Request, stream: Stream) -> None:
        """Send a request; what comes for it goes to `stream`, until `end`. Raises EngineUnavailable or EngineDied."""
        if self.state != "ready":
            raise unavailable(self.state)
        if request.request_id in self._streams:
            raise ValueError(f"request id {request.request_id!r} is in use")
        if not self._send(request):
            raise EngineDied("the engine is gone")
        self._streams[request.request_id] = stream
        self._unanswered = self._unanswered or (request.request_id, time.monotonic())

    def end(self, request_id: str) -> None:
        """Nobody waits for this request any more; what still runs of it is aborted."""
        stream = self._streams.pop(request_id)
        # After an abort the clock of a stall runs on: the engine has yet to take note.
        if stream.open:
            self._send(Abort(request_id=request_id))
        elif not stream.aborted:
            self._answered(request_id)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one choice of it: no more of it comes."""
        stream = self._streams.get(request_id)
        if stream is None:
            return
        stream.aborted = True
        if index is None:
            stream.open.clear()
        else:
            stream.open.discard(index)
        self._send(Abort(request_id=request_id, index=index))
        stream.put(None)

    def abandon(self, message: str) -> None:
        """End all requests with EngineDied."""
        for stream in list(self._streams.values()):
            stream.put(EngineDied(message))

    @abstractmethod
    def _send(self, message: ToEngine) -> bool:
        """Never blocks. False when there is no engine, which then works on nothing."""

    def _hand_out(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put(output)

    def _refuse(self, refused: Refused) -> None:
        self._answered(refused.request_id)
        stream = self._streams.get(refused.request_id)
        if stream is not None:
            stream.put(EngineRefused(refused.kind, refused.message, refused.param))

    def _stepped(self) -> None:
        """A step has finished, for whomever."""
        self._unanswered = (next(iter(self._streams)), time.monotonic()) if self._streams else None

    def _answered(self, request_id: str) -> None:
        """This request waits for no step any more; whether another does, the clock of a stall has to say."""
        if self._unanswered is not None and self._unanswered[0] == request_id:
            other = next((name for name in self._streams if name != request_id), None)
            self._unanswered = None if other is None else (other, self._unanswered[1])


def unavailable(state: State) -> EngineUnavailable:
    """What a request is told in a state in which none is admitted."""
    return EngineUnavailable(state, retry_after=5 if state == "loading" else 2)


def stalled(since: float | None, timeout: float) -> bool:
    """Whether a request that has waited for a step since then (None: there is none) has done so for too long."""
    return since is not None and time.monotonic() - since >= timeout
