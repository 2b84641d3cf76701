"""Every row of the table of errors, on a real server: status, type, code, headers, and the four keys."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from leoserve.api.catalog import FAULTS, Fault
from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server

from .wire import answer, connected, head

MODEL = "leo"
KEYS = "frei\neinmal requests_per_minute=1\nwenig tokens_per_minute=10\nkaum tokens_per_minute=100\n"
MAX_BODY = 1 << 16
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"

# Codes that no request can get, and why.
UNPROVOKED = {
    "array_below_min_length": "no field wants more than one element: OpenAI's code for none is empty_array",
    "string_below_min_length": "no field wants more than one character: OpenAI's code for none is empty_string",
    "internal_error": "every way to it that is known is mended; tests/api/test_errors.py makes one",
}


@dataclass
class Asked:
    """The server that is asked, and a connection whose head never ends, since before the first test."""

    server: Server
    slow: socket.socket

    def send(self, path: str, body: Any = None, *, key: str = "frei", **options: Any) -> httpx.Response:
        given = {"content": body} if isinstance(body, bytes) else {"json": body}
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **options.pop("headers", {})}
        method = options.pop("method", "POST")
        return httpx.request(
            method, self.server.url + path, headers=headers, timeout=PATIENCE, **(given if method == "POST" else {})
        )

    def chat(self, **fields: Any) -> httpx.Response:
        return self.send(CHATS, {"model": MODEL, "messages": [{"role": "user", "content": "Hallo"}]} | fields)

    def complete(self, key: str = "frei", **fields: Any) -> httpx.Response:
        return self.send(COMPLETIONS, {"model": MODEL, "prompt": "Hallo"} | fields, key=key)

    def raw(self, request: bytes) -> httpx.Response:
        with connected(self.server) as wire:
            wire.sendall(request)
            return answer(wire)

    def again(self, key: str) -> httpx.Response:
        """The second of two equal requests."""
        self.complete(key=key, max_tokens=1)
        return self.complete(key=key, max_tokens=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b")


@pytest.fixture(scope="module")
def asked(serve_once: Serve, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEYS)
    options = ("--api-key-file", str(keys), "--max-body-bytes", str(MAX_BODY), "--request-timeout", "2")
    server = serve_once(folder, "--num-kv-blocks", "512", *options)
    with connected(server) as slow:
        slow.sendall(b"GET /v1/models HTTP/1.1\r\nHost")
        yield Asked(server, slow)


def draining(asked: Asked, serve: Serve, folder: Path) -> httpx.Response:
    """What a server answers that is told to end while it still answers someone."""
    server = serve(folder, "--num-kv-blocks", "512")
    body = {"model": MODEL, "prompt": "Leo", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=PATIENCE) as running:
        lines = running.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        with server.held():
            server.wait_for("stopping")
            refused = httpx.post(server.url + COMPLETIONS, json=body, timeout=PATIENCE)
        server.process.send_signal(signal.SIGTERM)
    return refused


Provoke = Callable[[Asked], httpx.Response]
Row = tuple[int, str, str | None]

BAD = "invalid_request_error"
WAIT = ("retry-after",)
BOTH = ("retry-after", "retry-after-ms")
PROVOKED: dict[Row, tuple[Provoke, tuple[str, ...]]] = {
    (400, BAD, None): (lambda asked: asked.send(CHATS, b"{"), ()),
    (400, BAD, "missing_required_parameter"): (lambda asked: asked.send(CHATS, {"model": MODEL}), ()),
    (400, BAD, "invalid_type"): (lambda asked: asked.chat(temperature="heiß"), ()),
    (400, BAD, "invalid_value"): (lambda asked: asked.chat(service_tier="gold"), ()),
    (400, BAD, "integer_above_max_value"): (lambda asked: asked.chat(n=1025), ()),
    (400, BAD, "integer_below_min_value"): (lambda asked: asked.chat(n=0), ()),
    (400, BAD, "decimal_above_max_value"): (lambda asked: asked.chat(temperature=2.1), ()),
    (400, BAD, "decimal_below_min_value"): (lambda asked: asked.chat(top_p=-0.1), ()),
    (400, BAD, "array_above_max_length"): (lambda asked: asked.chat(stop=["a"] * 5), ()),
    (400, BAD, "empty_array"): (lambda asked: asked.chat(messages=[]), ()),
    (400, BAD, "string_above_max_length"): (lambda asked: asked.chat(stop="a" * 1025), ()),
    (400, BAD, "empty_string"): (lambda asked: asked.chat(stop=""), ()),
    (400, BAD, "object_above_max_length"): (
        lambda asked: asked.chat(logit_bias={str(token): 1 for token in range(4097)}),
        (),
    ),
    (400, BAD, "unknown_parameter"): (lambda asked: asked.chat(unheard_of=1), ()),
    (400, BAD, "unsupported_parameter"): (lambda asked: asked.chat(audio={"voice": "x"}), ()),
    (400, BAD, "unsupported_value"): (lambda asked: asked.chat(modalities=["audio"]), ()),
    (400, BAD, "context_length_exceeded"): (lambda asked: asked.complete(max_tokens=10**6), ()),
    (401, BAD, "invalid_api_key"): (lambda asked: asked.complete(key="falsch"), ("www-authenticate",)),
    (404, BAD, "model_not_found"): (lambda asked: asked.chat(model="gpt"), ()),
    (404, BAD, "unknown_url"): (lambda asked: asked.send("/v1/nichts", method="GET"), ()),
    (404, BAD, None): (lambda asked: asked.send("/v1/responses/resp_1", method="GET"), ()),
    (405, BAD, "method_not_supported"): (lambda asked: asked.send(CHATS, method="GET"), ("allow",)),
    (413, BAD, "request_too_large"): (lambda asked: asked.chat(user="x" * MAX_BODY), ()),
    (415, BAD, "unsupported_media"): (
        lambda asked: asked.send(CHATS, b"{}", headers={"Content-Type": "text/plain"}),
        (),
    ),
    (429, "requests", "rate_limit_exceeded"): (lambda asked: asked.again("einmal"), BOTH),
    (429, "tokens", "rate_limit_exceeded"): (lambda asked: asked.complete(key="wenig"), ("x-should-retry",)),
    (431, BAD, "header_too_large"): (lambda asked: asked.raw(head("GET", "/", "X: " + "x" * (1 << 16))), ()),
    (504, "server_error", "request_timeout"): (
        lambda asked: asked.complete(max_tokens=8000, n=64, ignore_eos=True),
        ("x-should-retry",),
    ),
    (408, BAD, "request_timeout"): (lambda asked: answer(asked.slow), ()),
}
BY_ENDING: dict[Row, tuple[str, ...]] = {(503, "server_error", "service_unavailable"): WAIT}


def rows() -> Iterator[tuple[Row, Fault]]:
    for fault in FAULTS:
        for code in fault.codes:
            yield (fault.status, fault.type, code), fault


def test_every_row_is_provoked_here_or_named_as_one_that_cannot_be() -> None:
    provoked = PROVOKED.keys() | BY_ENDING.keys()
    assert {row for row, _ in rows() if row[2] not in UNPROVOKED} == provoked
    assert UNPROVOKED.keys() <= {row[2] for row, _ in rows()}


def check(told: httpx.Response, row: Row, headers: tuple[str, ...]) -> None:
    body = told.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert (told.status_code, body["error"]["type"], body["error"]["code"]) == row
    assert body["error"]["message"]
    assert told.headers["content-type"] == "application/json"
    assert told.headers["x-request-id"]
    about = {"www-authenticate", "allow", "retry-after", "retry-after-ms", "x-should-retry"}
    assert about & told.headers.keys() == set(headers)
    fault = next(fault for its, fault in rows() if its == row and set(headers) <= {h.lower() for h in fault.headers})
    assert fault.status == told.status_code


@pytest.mark.parametrize("row", PROVOKED, ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
def test_it_is_answered_as_the_table_says(asked: Asked, row: Row) -> None:
    provoke, headers = PROVOKED[row]
    check(provoke(asked), row, headers)


def test_a_server_that_ends_says_so(asked: Asked, serve: Serve, folder: Path) -> None:
    row, headers = next(iter(BY_ENDING.items()))
    check(draining(asked, serve, folder), row, headers)


def test_tokens_that_are_spent_come_back_and_one_is_told_when(asked: Asked) -> None:
    asked.complete(key="kaum", max_tokens=90, ignore_eos=True)
    told = asked.complete(key="kaum", max_tokens=90, ignore_eos=True)
    check(told, (429, "tokens", "rate_limit_exceeded"), BOTH)
    assert json.loads(told.content)["error"]["message"].startswith("Rate limit reached on tokens per min")
