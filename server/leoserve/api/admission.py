"""Refusing early: what the engine would not admit, or memory should not hold, is not read, rendered and tokenized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from leoserve.api.errors import overloaded
from leoserve.board import Board
from leoserve.engine.request import EngineStats
from leoserve.settings import Settings

BODIES_HELD = 32  # largest bodies whose bytes may be held together on the way to the engine


class Engine(Protocol):
    """What is read of the engine."""

    @property
    def stats(self) -> EngineStats: ...
    @property
    def in_flight(self) -> int: ...


class Admission:
    """Counts the requests on their way to the engine, and the bytes of their bodies, of all processes of `board`."""

    def __init__(self, settings: Settings, engine: Engine, board: Board | None = None) -> None:
        self.engine = engine
        self.max_waiting = max(settings.max_waiting_requests, 1)  # an empty queue takes any request
        self.max_requests = settings.max_num_seqs + settings.max_waiting_requests
        self.max_bytes = BODIES_HELD * settings.max_body_bytes
        self._cells = (board or Board()).passing_cells(2)

    @property
    def requests(self) -> int:
        return int(self._cells.total(0))

    @property
    def bytes(self) -> int:
        return int(self._cells.total(1))

    @contextmanager
    def place(self, *, generates: bool = True) -> Iterator[Callable[[int], None]]:
        """A place on the way to the engine, or only among the bodies that are read for a request that never goes there.
        Call what it gives with the size of the body once that is there.

        Both raise ApiError 429 when there is no room.
        """
        waiting = self.engine.stats.waiting
        if waiting:  # an idle engine's last snapshot grows old
            waiting = min(waiting, self.engine.in_flight)
        if generates and waiting >= self.max_waiting:
            raise overloaded(f"{waiting} answers are waiting already")
        if self.requests >= self.max_requests:
            raise overloaded(f"{self.requests} requests are being prepared already")
        held = 0
        own = self._cells.own

        def hold(size: int) -> None:
            nonlocal held
            if self.bytes + size > self.max_bytes:
                raise overloaded(f"{self.requests} requests of {self.bytes} bytes are being prepared already")
            own[1] += size
            held += size

        own[0] += 1
        try:
            yield hold
        finally:
            own[0] -= 1
            own[1] -= held
