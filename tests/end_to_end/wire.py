"""A client that sends whatever bytes it likes, and what can be seen of a server from outside."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.conftest import PATIENCE, Server


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    """A connection to `server`."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=PATIENCE) as wire:
        yield wire


def head(method: str, path: str, *fields: str) -> bytes:
    """The head of a request. `fields`: each as it is sent."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode("latin-1")


def post(path: str, body: bytes, *fields: str) -> bytes:
    """A whole request with a JSON body."""
    return head("POST", path, "Content-Type: application/json", f"Content-Length: {len(body)}", *fields) + body


def answers(wire: socket.socket) -> list[httpx.Response]:
    """All that the server sends until it closes the connection, as responses."""
    told = b""
    try:
        while part := wire.recv(1 << 16):
            told += part
    except ConnectionError:
        pass
    found = []
    while told:
        response, told = first(told)
        found.append(response)
    return found


def answer(wire: socket.socket) -> httpx.Response:
    """The next response with a Content-Length. Raises EOFError when the connection ends without one."""
    told = b""
    while True:
        if b"\r\n\r\n" in told:
            begin, _, rest = told.partition(b"\r\n\r\n")
            length = int(fields_of(begin)["content-length"])
            if len(rest) >= length:
                return first(told)[0]
        part = wire.recv(1 << 16)
        if not part:
            raise EOFError(told)
        told += part


def first(told: bytes) -> tuple[httpx.Response, bytes]:
    """The first response in these bytes, and what follows it."""
    begin, _, rest = told.partition(b"\r\n\r\n")
    fields = fields_of(begin)
    length = int(fields["content-length"])
    status = int(begin.split(b" ", 2)[1])
    return httpx.Response(status, headers=fields, content=rest[:length]), rest[length:]


def fields_of(begin: bytes) -> dict[str, str]:
    lines = begin.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def metric(server: Server, series: str) -> float:
    """One series of /metrics."""
    lines = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text.splitlines()
    return float(next(line for line in lines if line.startswith(series + " ")).rpartition(" ")[2])


def rejected(server: Server, reason: str) -> float:
    return metric(server, f'leoserve_requests_rejected_total{{reason="{reason}"}}')


def idle(server: Server) -> bool:
    """Whether nothing runs, nothing waits, and every block of the cache is free."""
    names = ("leoserve_requests_running", "leoserve_requests_waiting", "leoserve_kv_blocks_used")
    return all(metric(server, name) == 0 for name in names)


def resident(server: Server) -> int:
    """Memory of the server's processes, in bytes."""
    process = psutil.Process(server.process.pid)
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])


def peak(server: Server) -> int:
    """The most memory that the server's processes ever had, in bytes."""
    process = psutil.Process(server.process.pid)
    found = 0
    for each in [process, *process.children(recursive=True)]:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            lines = Path(f"/proc/{each.pid}/status").read_text().splitlines()
            found += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return found
