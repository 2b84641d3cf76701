"""Very many clients at once, most of them idle, on the server as it is started."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.conftest import Serve, Server

IDLE, STREAMS, TOKENS = 2000, 512, 12
USUAL_LIMIT = 1024  # of open files, where nobody has raised it


@pytest.fixture
def server(serve: Serve) -> Iterator[Server]:
    """The demo, started under the usual limit of open files. The clients are many, too: theirs is raised here."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 2 * (IDLE + STREAMS):
        pytest.skip(f"the system allows a process no more than {most} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_LIMIT, most))
    server = serve(None, "--max-connections", str(IDLE + STREAMS), "--max-num-seqs", str(STREAMS), "--no-log-requests")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * (IDLE + STREAMS), most))
    yield server
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, server: Server) -> Client:
        address = urlsplit(server.url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    async def health(self) -> None:
        self.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        assert await self.reader.readexactly(len(b'{"status":"ok"}')) == b'{"status":"ok"}'

    async def stream(self, number: int) -> int:
        """Stream an answer; the tokens that were counted for it."""
        body = {"model": "leoserve-demo", "prompt": f"Nummer {number}", "max_tokens": TOKENS, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps(body).encode()
        self.writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: " + str(len(data)).encode() + b"\r\n\r\n"
        )
        self.writer.write(data)
        answer = await self.reader.readuntil(b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:500]
        events = [line[6:] for line in answer.splitlines() if line.startswith(b"data: ")]
        assert events[-1] == b"[DONE]"
        return int(json.loads(events[-2])["usage"]["completion_tokens"])


async def test_two_thousand_idle_connections_and_512_streams_at_once_are_all_served(server: Server) -> None:
    idle: list[Client] = []
    for _ in range(IDLE // 100):
        idle += await asyncio.gather(*(Client.connect(server) for _ in range(100)))
    await asyncio.gather(*(client.health() for client in idle))
    streaming = await asyncio.gather(*(Client.connect(server) for _ in range(STREAMS)))
    counts = await asyncio.gather(*(client.stream(number) for number, client in enumerate(streaming)))
    assert counts == [TOKENS] * STREAMS
    await asyncio.gather(*(client.health() for client in idle))  # on the connection that each had kept
    for client in [*idle, *streaming]:
        client.writer.close()
    assert "error" not in server.stderr.lower(), server.stderr
