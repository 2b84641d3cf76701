"""What a client may do to a connection before anyone has looked at its key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from leoserve.api import connection
from leoserve.api.connection import MAX_FIELDS, MAX_HEAD_BYTES
from tests.conftest import PATIENCE

from .conftest import Running, Start
from .test_errors import error_of

Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def wire(server: Running) -> AsyncIterator[Wire]:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> httpx.Response:
    """The next response on the wire."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    headers = dict(line.split(": ", 1) for line in lines)
    content = await reader.readexactly(int(headers["content-length"]))
    return httpx.Response(int(status.split()[1]), headers=headers, content=content)


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


@pytest.mark.parametrize(
    "head",
    [
        get("/v1/models", "X-Long: " + "x" * MAX_HEAD_BYTES),
        get("/v1/models", *["X-Some: " + "x" * 1000] * 70),
        get("/v1/models", *["X: x"] * MAX_FIELDS),
        get("/" + "x" * MAX_HEAD_BYTES),
    ],
    ids=["field", "fields", "number", "url"],
)
async def test_a_head_over_the_limit_is_a_431(server: Running, head: bytes) -> None:
    async with wire(server) as (reader, writer):
        writer.write(head)
        refused = await answer(reader)
        assert (refused.status_code, error_of(refused)["code"]) == (431, "header_too_large")
        assert await reader.read() == b""


async def test_a_field_that_never_ends_is_refused_and_not_kept(server: Running) -> None:
    async with wire(server) as (reader, writer):
        writer.write(get("/v1/models")[:-2] + b"X-Long: ")
        answered = asyncio.create_task(answer(reader))
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):  # 125 MB, were it to go on
                if answered.done():
                    break
                writer.write(b"x" * 65_536)
                await writer.drain()
                await asyncio.sleep(0)
            else:
                pytest.fail("nothing refused it")
        assert (await answered).status_code == 431


async def test_trailers_that_never_end_close_the_connection(server: Running) -> None:
    async with wire(server) as (reader, writer):
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"2\r\n{}\r\n0\r\nX-Long: ")
        closed = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                if closed.done():
                    break
                writer.write(b"x" * 65_536)
                await writer.drain()
                await asyncio.sleep(0)
            else:
                pytest.fail("nothing ended it")
        with contextlib.suppress(ConnectionError):
            await closed


async def test_a_long_head_within_the_limit_is_served_in_whatever_pieces_and_each_anew(server: Running) -> None:
    head = get("/v1/models", *["X-Some: " + "x" * 1000] * 60)
    async with wire(server) as (reader, writer):
        for size in (len(head), 100, 7000):
            for start in range(0, len(head), size):
                writer.write(head[start : start + size])
                await writer.drain()
                await asyncio.sleep(0)
            assert (await answer(reader)).status_code == 200


async def test_what_is_no_http_gets_an_error_of_the_same_shape(server: Running) -> None:
    async with wire(server) as (reader, writer):
        writer.write(b"nonsense\r\n\r\n")
        refused = await answer(reader)
        assert (refused.status_code, error_of(refused)["type"]) == (400, "invalid_request_error")


async def test_a_head_that_does_not_end_in_time_is_a_408(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)  # enough to send the head's begin
    async with wire(server) as (reader, writer):
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost")
        assert error_of(await answer(reader))["code"] == "request_timeout"
    async with wire(server) as (reader, writer):
        assert await reader.read() == b""  # not a byte: nothing to answer


UNFINISHED = {"declared": "Content-Length: 10\r\n\r\n{", "chunked": "Transfer-Encoding: chunked\r\n\r\na\r\n{"}


@pytest.mark.parametrize("body", UNFINISHED.values(), ids=UNFINISHED)
async def test_a_body_that_does_not_end_in_time_is_a_408(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.05)
    with caplog.at_level("INFO", "leoserve.request"):
        async with wire(server) as (reader, writer):
            writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{body}".encode())
            refused = await answer(reader)
            assert (refused.status_code, refused.headers["connection"]) == (408, "close")
            assert error_of(refused)["code"] == "request_timeout"
            assert await reader.read() == b""
        await counted(server, 'leoserve_responses_total{status="408"} 1.0')
    assert server.context.admission.requests == 0
    told = (await server.http.get("/metrics")).text
    assert 'leoserve_requests_rejected_total{reason="timeout"} 1.0' in told
    assert 'leoserve_responses_total{status="499"} 0.0' in told
    assert [(record.__dict__["status"], bool(record.__dict__["error"])) for record in caplog.records] == [(408, True)]


async def counted(server: Running, line: str) -> None:
    """The server has counted, which it does after the client has its answer."""
    async with asyncio.timeout(PATIENCE):
        while line not in (await server.http.get("/metrics")).text:
            await asyncio.sleep(0.001)


async def test_a_body_that_does_not_end_after_its_answer_gets_no_second_one(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, rest in ((0.5, b""), (300.0, b"no chunk")):  # enough for the answer that comes first
        monkeypatch.setattr(connection, "BODY_SECONDS", seconds)
        async with wire(server) as (reader, writer):
            writer.write(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert (await answer(reader)).status_code == 404
            writer.write(rest)
            assert await reader.read() == b""


async def test_the_body_of_a_request_that_waits_for_an_answer_before_it_has_its_time_after_that(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"model": "leo", "prompt": "Hallo"}'
    post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    server.engine.pause_after = 0
    server.engine.resume.clear()
    looked = asyncio.Event()
    too_slow = connection.Connection._too_slow

    def look(self: connection.Connection) -> None:
        monkeypatch.setattr(connection, "BODY_SECONDS", 300.0)
        too_slow(self)
        looked.set()

    monkeypatch.setattr(connection.Connection, "_too_slow", look)
    async with wire(server) as (reader, writer):
        writer.write(post + body)
        while not server.engine.requests:
            await asyncio.sleep(0)
        monkeypatch.setattr(connection, "BODY_SECONDS", 0.05)
        writer.write(post)
        await looked.wait()  # and the time has begun again
        server.engine.resume.set()
        assert (await answer(reader)).status_code == 200
        writer.write(body)
        assert (await answer(reader)).status_code == 200


async def test_a_head_request_that_is_refused_gets_no_body(server: Running) -> None:
    async with wire(server) as (reader, writer):
        writer.write(b"HEAD" + get("/v1/models", "X-Long: " + "x" * MAX_HEAD_BYTES)[3:])
        refused = await reader.read()
        assert refused.startswith(b"HTTP/1.1 431 ")
        assert refused.endswith(b"\r\n\r\n")


async def test_beyond_the_connections_that_are_served_only_the_watching_routes_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RESERVE", 1)
    server = await start(max_connections=2)
    async with wire(server) as first, wire(server) as second:
        for reader, writer in (first, second):
            writer.write(get("/v1/models"))
            assert (await answer(reader)).status_code == 200
        for path, status in (("/health", 200), ("/ready", 200), ("/metrics", 200), ("/v1/models", 503)):
            async with wire(server) as (reader, writer):
                writer.write(get(path, "Connection: close"))
                told = await answer(reader)
                assert told.status_code == status
                assert await reader.read() == b""
        assert error_of(told)["code"] == "service_unavailable"
        assert int(told.headers["retry-after"]) >= 1
        async with wire(server) as third, wire(server) as (reader, _):
            assert await reader.read() == b""  # beyond the reserve: not even read
            for (reader, writer), path in ((third, "/health"), (first, "/v1/models")):
                writer.write(get(path))
                assert (await answer(reader)).status_code == 200
    async with asyncio.timeout(PATIENCE):
        while (await server.http.get("/v1/models", headers={"connection": "close"})).status_code != 200:
            await asyncio.sleep(0.001)
