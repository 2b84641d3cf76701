"""What surrounds every request: ids, the bound on bodies, other origins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from .conftest import Running, Start
from .test_errors import error_of


@pytest.fixture
async def small(start: Start) -> Running:
    return await start(max_body_bytes=2000)


async def test_a_body_up_to_the_limit_is_taken_and_a_larger_one_is_not(small: Running) -> None:
    for size, status in ((1700, 200), (2500, 413)):
        answer = await small.chat(user="x" * size)
        assert answer.status_code == status
    assert error_of(answer)["code"] == "request_too_large"
    assert "2000 bytes" in answer.json()["error"]["message"]


async def test_a_chunked_body_is_refused_once_it_is_too_large_however_long_it_goes_on(small: Running) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + 3 * chunk)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_client_that_sends_its_whole_large_body_first_sees_the_refusal(small: Running) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(3000):
            yield b"x" * 1000

    for content in (b"x" * 3_000_000, body()):
        answer = await small.http.post("/v1/chat/completions", content=content)
        assert answer.status_code == 413
        error_of(answer)


async def test_a_declared_size_is_refused_before_the_body_comes(small: Running) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    writer.close()


@pytest.mark.parametrize("given", ["my-id_1.2:3", "x" * 128])
async def test_a_sane_request_id_is_kept(server: Running, given: str) -> None:
    for path in ("/v1/models", "/nowhere", "/health"):
        assert (await server.http.get(path, headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "ä", "a;b"])
async def test_any_other_request_id_is_replaced(server: Running, given: str) -> None:
    answer = await server.http.get("/v1/models", headers=[(b"x-request-id", given.encode("latin-1"))])
    assert answer.headers["x-request-id"].startswith("req_")


async def test_each_response_has_its_own_request_id(server: Running) -> None:
    ids = {(await server.chat(stream=stream)).headers["x-request-id"] for stream in (False, True, False)}
    assert len(ids) == 3


async def test_other_origins_are_let_in_only_when_configured(start: Start) -> None:
    page = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    closed = await start()
    assert (await closed.http.options("/v1/chat/completions", headers=page)).status_code == 405
    assert "access-control-allow-origin" not in (await closed.http.get("/v1/models", headers=page)).headers
    opened = await start(cors_origin=["https://chat.example"])
    preflight = await opened.http.options("/v1/chat/completions", headers=page)
    assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
    other = await opened.http.get("/v1/models", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
