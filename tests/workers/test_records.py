"""What crosses the socket between the supervisor and a worker arrives as it was sent, however it is cut."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leoserve.engine.request import Abort, Refused, TokenOutput
from leoserve.workers.records import Close, Ended, EngineState, Line, Outputs, ToSupervisor, ToWorker
from tests.conftest import PATIENCE

RECORDS: list[ToWorker] = [
    Outputs([TokenOutput("r1", 0, [1, 2], finish_reason="length"), TokenOutput("r2", 3, [])]),
    Refused("r1", "overloaded", "voll"),
    Ended("r2", "the engine is draining", "draining"),
    Ended("r3", "the engine is gone"),
    EngineState("loading", None),
    Close(at_once=True),
]


class Sent(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += bytes(data)

    def is_closing(self) -> bool:
        return False


@given(cuts=st.lists(st.integers(0, 400)))
def test_records_arrive_whole_and_in_order_however_the_bytes_are_cut(cuts: list[int]) -> None:
    came: list[ToWorker] = []
    here, there = Line[ToSupervisor](ToSupervisor, lambda record: None), Line[ToWorker](ToWorker, came.append)
    sent = Sent()
    here.connection_made(sent)
    assert all(here.send(record) for record in RECORDS)
    edges = [0, *sorted(cut % (len(sent.data) + 1) for cut in cuts), len(sent.data)]
    for begin, end in zip(edges, edges[1:], strict=False):
        there.data_received(sent.data[begin:end])
    assert came == RECORDS


async def test_to_an_end_that_is_gone_nothing_is_sent() -> None:
    ours, theirs = socket.socketpair()
    line = Line[ToWorker](ToWorker, lambda record: None)
    assert not line.send(Abort(request_id="early"))
    await asyncio.get_running_loop().create_unix_connection(lambda: line, sock=ours)
    assert line.send(Abort(request_id="r"))
    theirs.close()
    async with asyncio.timeout(PATIENCE):
        while line.send(Abort(request_id="r")):
            await asyncio.sleep(0)


def test_what_is_no_record_is_an_error() -> None:
    line = Line[ToWorker](ToWorker, lambda record: None)
    with pytest.raises(ValueError, match="missing required field"):
        line.data_received(cast(bytes, b"\x01\x00\x00\x00\x80"))
