"""What the supervisor and a worker tell each other, and how it crosses the socket between them.

A frame is a length of 4 bytes and a record in msgpack. The first record of all, `Launch`, is a line of JSON on the
worker's standard input.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from leoserve.engine.request import Abort, Ready, Refused, Request, TokenOutput
from leoserve.engine.streams import State

LENGTH = struct.Struct("<I")
T = TypeVar("T")


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told at its start. `line`, `listener`, `board`: descriptors that it inherits."""

    settings: dict[str, Any]
    folder: str  # the model's
    names: list[str]  # the model's
    created: int  # Unix time of the server's start
    line: int
    listener: int
    board: int
    rows: int  # of the board
    row: int  # of the worker
    life: int  # how many had this row before


class Outputs(msgspec.Struct, tag="outputs"):
    """All that one step brought for this worker's requests."""

    outputs: list[TokenOutput]


class Ended(msgspec.Struct, tag="ended"):
    """A request that ended without its answer: not admitted in this state, or (None) lost with the engine."""

    request_id: str
    message: str
    state: State | None = None


class EngineState(msgspec.Struct, tag="state"):
    """How it is with the engine from now on."""

    state: State
    ready: Ready | None


class Close(msgspec.Struct, tag="close"):
    """End: let what has ended leave, or, `at_once`, only an error event."""

    at_once: bool


ToWorker = Outputs | Refused | Ended | EngineState | Close
ToSupervisor = Request | Abort


class Line(asyncio.Protocol, Generic[T]):
    """One end of the socket. Belongs to the event loop. What cannot be sent yet waits: admission bounds it."""

    def __init__(self, records: Any, take: Callable[[T], None]) -> None:
        """`take` is called with each record of the other end, which is one of the types `records`."""
        self._take = take
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(records)
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    def send(self, record: ToWorker | ToSupervisor) -> bool:
        """False when the other end is gone."""
        if self._transport is None or self._transport.is_closing():
            return False
        body = self._encoder.encode(record)
        self._transport.write(LENGTH.pack(len(body)) + body)
        return True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        begin = 0
        while (start := begin + LENGTH.size) <= len(self._received):
            end = start + LENGTH.unpack_from(self._received, begin)[0]
            if end > len(self._received):
                break
            record = self._decoder.decode(self._received[start:end])
            begin = end
            self._take(record)
        del self._received[:begin]
