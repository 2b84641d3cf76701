"""A server that streams ready-made events as fast as a socket takes them: what a client can take, and nothing else.

Run as a process: `python noop.py TOKENS EVENTS_PER_WRITE PAUSE`, with a pause in seconds after each write, 0 for none.
It prints its port.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


class NoOp(asyncio.Protocol):
    """Answers every request that has wholly come, with the same number of tokens."""

    def __init__(self, tokens: int, at_once: int, pause: float) -> None:
        self.pause = pause
        delta = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1700000000, "model": "noop"}
        one = chunk(
            event({**delta, "choices": [{"index": 0, "text": " Wort", "logprobs": None, "finish_reason": None}]})
        )
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        end = event({**delta, "choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        end += event({**delta, "choices": [], "usage": usage})
        self.piece = one * at_once
        self.writes = tokens // at_once
        self.tail = chunk(end + b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.received = b""
        self.left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self.received = b""
        if head.startswith(b"GET"):
            models = b'{"data": [{"id": "noop"}]}'
            found = head.split(b" ")[1] == b"/v1/models"
            status = b"200 OK" if found else b"404 Not Found"
            self.transport.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(models), models))
            return
        self.transport.write(HEAD)
        self.left = self.writes
        self.write()

    def write(self) -> None:
        """One piece, and the next when every other connection had its turn."""
        if self.transport.is_closing():
            return
        if self.left:
            self.left -= 1
            self.transport.write(self.piece)
            loop = asyncio.get_running_loop()
            if self.pause:
                loop.call_later(self.pause, self.write)
            else:
                loop.call_soon(self.write)
        else:
            self.transport.write(self.tail)


async def main() -> None:
    tokens, at_once, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    server = await asyncio.get_running_loop().create_server(lambda: NoOp(tokens, at_once, pause), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
