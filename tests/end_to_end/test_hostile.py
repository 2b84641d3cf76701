"""Whatever a client sends, a real server answers it in time and goes on.

Each attack runs beside a stream that must not change by a token, with a bound on the memory that it takes, and nothing
is left running or held after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server

from .wire import answer, answers, connected, head, idle, metric, peak, post

MODEL = "leo"
COMPLETIONS, CHATS, MODELS = "/v1/completions", "/v1/chat/completions", "/v1/models"
MAX_BODY = 1 << 20
MIB = 1 << 20
MEMORY = 160 * MIB  # that an attack may take beyond the most that the server ever had
HEALTHY = {
    "model": MODEL,
    "prompt": "Es war einmal",
    "max_tokens": 200,
    "ignore_eos": True,
    "temperature": 0,
    "stream": True,
    "return_token_ids": True,
}
FORM = {"structured_outputs": {"regex": "([a-z]{3} ){60}"}}
Body = dict[str, Any]
Told = list[tuple[str, list[int]]]


@pytest.fixture(scope="module")
def server(serve_once: Serve, tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b")
    options = ("--num-kv-blocks", "512", "--max-body-bytes", str(MAX_BODY), "--max-waiting-requests", "8192")
    return serve_once(folder, "--dtype", "float32", "--log-level", "warning", *options)


def told(server: Server, body: Body) -> Told:
    """The text and the tokens of every event of a stream that comes to its end."""
    response = httpx.post(server.url + COMPLETIONS, json=body, timeout=PATIENCE)
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events if event[0] != ":"]
    return [(choice["text"], choice.get("token_ids", [])) for choice in choices]


@pytest.fixture(scope="module")
def expected(server: Server) -> dict[str, Told]:
    """What streams say that have the server for themselves."""
    return {"free": told(server, HEALTHY), "constrained": told(server, HEALTHY | FORM)}


class Healthy(threading.Thread):
    """Asks for the same stream again and again, until it is told to end."""

    def __init__(self, server: Server, body: Body) -> None:
        super().__init__()
        self.server = server
        self.body = body
        self.heard: list[Told] = []
        self.over = threading.Event()
        self.fault: Exception | None = None

    def run(self) -> None:
        try:
            while not (self.over.is_set() and self.heard):
                self.heard.append(told(self.server, self.body))
        except Exception as error:
            self.fault = error

    def end(self) -> list[Told]:
        self.over.set()
        self.join(PATIENCE)
        if self.fault is not None:
            raise self.fault
        assert not self.is_alive(), "a stream came to no end"
        return self.heard


@contextmanager
def undisturbed(server: Server, expected: dict[str, Told], *kinds: str) -> Iterator[None]:
    """While this runs, streams go on, and say what they say alone; after it nothing is left of what was done."""
    before = peak(server)
    bodies = {"free": HEALTHY, "constrained": HEALTHY | FORM}
    streams = {kind: Healthy(server, bodies[kind]) for kind in kinds or ("free",)}
    for stream in streams.values():
        stream.start()
    try:
        yield
    finally:
        heard = {kind: stream.end() for kind, stream in streams.items()}
    for kind, answers_heard in heard.items():
        assert all(each == expected[kind] for each in answers_heard), kind
    assert peak(server) - before < MEMORY
    while not idle(server):
        time.sleep(0.02)


def chat(content: Any, **fields: Any) -> bytes:
    return json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 1} | fields
    ).encode()


def completion(prompt: Any = "Leo", **fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 1} | fields).encode()


def with_value(text: bytes) -> bytes:
    """A chat whose temperature is written so."""
    return chat("a", temperature=0.5).replace(b"0.5", text)


def of_size(size: int) -> bytes:
    body = completion(user="")
    return completion(user="x" * (size - len(body)))


BODIES: dict[str, tuple[str, bytes, int]] = {
    "nothing": (CHATS, b"", 400),
    "cut off": (CHATS, chat("a")[:-5], 400),
    "more than one": (CHATS, chat("a") * 2, 400),
    "invalid UTF-8": (CHATS, chat("a").replace(b'"a"', b'"\xff\xfe"'), 400),
    "a lone surrogate": (CHATS, chat("a").replace(b'"a"', b'"\\ud800"'), 400),
    "a control character": (CHATS, chat("a").replace(b'"a"', b'"\x01"'), 400),
    "control characters, escaped": (CHATS, chat("\x00\x1b\x7f\u2028\u202e"), 200),
    "arrays in arrays": (CHATS, b"[" * MAX_BODY, 400),
    "objects in objects": (CHATS, b'{"a":' * (MAX_BODY // 5), 400),
    "a deep schema": (
        CHATS,
        chat("a", response_format={"type": "json_object"}).replace(b"{}", b"[" * 10_000) + b"]" * 10_000,
        400,
    ),
    "NaN": (CHATS, with_value(b"NaN"), 400),
    "Infinity": (CHATS, with_value(b"-Infinity"), 400),
    "1e400": (CHATS, with_value(b"1e400"), 400),
    "1e-400": (CHATS, with_value(b"1e-400"), 200),
    "digits": (CHATS, with_value(b"1" * 100_000), 400),
    "a key twice": (CHATS, chat("a").replace(b'"max_tokens": 1', b'"max_tokens": 0, "max_tokens": 1'), 200),
    "as long as may be": (COMPLETIONS, of_size(MAX_BODY), 200),
    "a byte longer": (COMPLETIONS, of_size(MAX_BODY + 1), 413),
    "1024 prompts": (COMPLETIONS, completion(["Leo"] * 1024), 200),
    "1025 prompts": (COMPLETIONS, completion(["Leo"] * 1025), 400),
    "a million characters": (CHATS, chat("x" * 1_000_000), 400),
    "128 answers": (CHATS, chat("a", n=128), 200),
    "129 answers": (CHATS, chat("a", n=129), 400),
    "4096 biases": (CHATS, chat("a", logit_bias={str(3 + number % 250): 1 for number in range(4096)}), 200),
    "biases of no tokens": (CHATS, chat("a", logit_bias={str(10**6 + number): 1 for number in range(4096)}), 400),
    "too many biases": (CHATS, chat("a", logit_bias={str(number): 1 for number in range(60_000)}), 400),
    "long stops": (CHATS, chat("a", stop=["x" * 1023 + letter for letter in "abcd"]), 200),
    "too long stops": (CHATS, chat("a", stop=["x" * 200_000 + letter for letter in "abcd"]), 400),
    "tokens that are none": (COMPLETIONS, completion([[5, 10**6], [2**31]]), 400),
    "negative tokens": (COMPLETIONS, completion([-1] * 1000), 400),
    "10,000 parts": (CHATS, chat([{"type": "text", "text": "a"}] * 10_000), 400),
    "1024 parts": (CHATS, chat([{"type": "text", "text": "a"}] * 1024), 200),
    "50,000 messages": (CHATS, json.dumps({"model": MODEL, "messages": [{}] * 50_000}).encode(), 400),
    "60,000 unknown fields": (CHATS, chat("a", **{f"feld{number}": 1 for number in range(60_000)}), 400),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_any_kind_is_answered(server: Server, expected: dict[str, Told], name: str) -> None:
    path, body, status = BODIES[name]
    with undisturbed(server, expected), ExitStack() as stack:
        wires = [stack.enter_context(connected(server)) for _ in range(4)]
        for wire in wires:
            wire.sendall(post(path, body))
        for wire in wires:
            response = answer(wire)
            assert response.status_code == status, response.text[:400]
            if status != 200:
                assert response.json()["error"].keys() == {"message", "type", "param", "code"}
                assert len(response.content) < 2000


CHUNKED = head("POST", COMPLETIONS, "Content-Type: application/json", "Transfer-Encoding: chunked")
BOTH = head("POST", COMPLETIONS, "Content-Length: 6", "Transfer-Encoding: chunked")
HIDDEN = head("GET", "/hidden")
REQUESTS: dict[str, tuple[bytes, list[int]]] = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", [400]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "a long field": (head("GET", MODELS, "X: " + "x" * 70_000), [431]),
    "many fields": (head("GET", MODELS, *["X: x"] * 300), [431]),
    "a field with a space": (head("GET", MODELS, "Content-Length : 5"), [400]),
    "a folded field": (head("GET", MODELS, "X: a\r\n b", "Connection: close"), [400]),
    "a null byte": (head("GET", MODELS, "X: a\x00b"), [400]),
    "two lengths": (head("POST", COMPLETIONS, "Content-Length: 2", "Content-Length: 60") + b"{}" + HIDDEN, [400]),
    "a negative length": (head("POST", COMPLETIONS, "Content-Length: -2"), [400]),
    "an enormous length": (head("POST", COMPLETIONS, "Content-Length: " + "9" * 30), [400]),
    "a length and chunks": (BOTH + b"0\r\n\r\n" + HIDDEN, [400]),
    "two encodings": (head("POST", COMPLETIONS, "Transfer-Encoding: chunked, identity") + b"0\r\n\r\n" + HIDDEN, [400]),
    "a chunk of no size": (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", [400]),
    "a chunk of a negative size": (CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n", [400]),
    "a chunk of an enormous size": (CHUNKED + b"F" * 17 + b"\r\n{}\r\n0\r\n\r\n", [400]),
    "a line end that is none": (CHUNKED + b"2\n{}\n0\n\n" + HIDDEN, [400]),
    "another host": (b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", [200]),
    "another method": (head("TRACE", MODELS) + head("OPTIONS", MODELS, "Connection: close"), [405] * 2),
    "no method": (head("HACK", MODELS), [400]),
    "an encoded slash": (head("GET", "/v1/models/..%2f..%2fetc%2fpasswd", "Connection: close"), [404]),
    "an encoded line end": (head("GET", "/v1/%0d%0aX-Evil:%201", "Connection: close"), [404]),
    "a broken escape": (head("GET", "/v1/%zz%c0%af", "Connection: close"), [404]),
    "requests in a row": (head("GET", MODELS) * 60 + head("GET", MODELS, "Connection: close"), [200] * 61),
    "bodies in a row": (
        post(COMPLETIONS, b"{") + post(COMPLETIONS, completion()) + head("GET", MODELS, "Connection: close"),
        [400, 200, 200],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_of_any_shape_is_answered_and_hides_no_other(
    server: Server, expected: dict[str, Told], name: str
) -> None:
    sent, statuses = REQUESTS[name]
    with undisturbed(server, expected), connected(server) as wire:
        wire.sendall(sent)
        heard = answers(wire)
        assert [each.status_code for each in heard] == statuses
        assert not any("hidden" in each.text for each in heard)
        for each in heard:
            assert "x-evil" not in each.headers
            if each.status_code != 200:
                assert each.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_body_in_chunks_without_an_end_is_a_413(server: Server, expected: dict[str, Told]) -> None:
    with undisturbed(server, expected), connected(server) as wire:
        wire.sendall(CHUNKED + b"7FFFFFFFFFFFFFFF\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                wire.sendall(b"x" * MIB)
        assert answer(wire).status_code == 413


def test_a_head_has_no_body(server: Server) -> None:
    for path, status in ((MODELS, 200), (COMPLETIONS, 405), ("/nowhere", 404)):
        heard = httpx.head(server.url + path, timeout=PATIENCE)
        assert (heard.status_code, heard.content) == (status, b"")


def test_clients_that_send_little_or_nothing_hold_up_nobody(server: Server, expected: dict[str, Told]) -> None:
    body = completion(user="x" * 1000)
    begun = (b"", b"GET /v1/mod", head("GET", MODELS)[:-2] + b"X: ", post(COMPLETIONS, body)[:-500])
    with undisturbed(server, expected), ExitStack() as stack:
        wires = [stack.enter_context(connected(server)) for _ in range(200)]
        for number, wire in enumerate(wires):
            wire.sendall(begun[number % len(begun)])
        for _ in range(20):  # a byte at a time
            for wire in wires[2:]:
                wire.sendall(b"x")
        assert httpx.get(server.url + MODELS, timeout=PATIENCE).status_code == 200
        for wire in wires[3::4]:
            wire.sendall(b"x" * 478 + b'"}')
            assert answer(wire).status_code in (200, 429)


def test_clients_that_do_not_read_their_streams_hold_up_nobody(server: Server, expected: dict[str, Told]) -> None:
    readers, answers_each, tokens = 4, 8, 1000
    body = completion(stream=True, n=answers_each, max_tokens=tokens, ignore_eos=True, logprobs=2)
    url = httpx.URL(server.url)
    made = metric(server, "leoserve_generation_tokens_total") + readers * answers_each * tokens
    with undisturbed(server, expected), ExitStack() as stack:
        for _ in range(readers):
            wire = stack.enter_context(socket.socket())
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect((url.host, url.port or 80))
            wire.sendall(post(COMPLETIONS, body))
            assert wire.recv(16).startswith(b"HTTP/1.1 200")
        while metric(server, "leoserve_generation_tokens_total") < made:  # nobody waits for them, and their blocks go
            time.sleep(0.02)
        assert httpx.get(server.url + MODELS, timeout=PATIENCE).status_code == 200


def test_clients_that_go_away_by_the_hundred_leave_nothing(server: Server, expected: dict[str, Told]) -> None:
    body = completion(stream=True, n=2, max_tokens=3000, ignore_eos=True)

    async def leave(number: int) -> None:
        url = httpx.URL(server.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(post(COMPLETIONS if number % 2 else CHATS, body if number % 2 else chat("a", max_tokens=3000)))
        await writer.drain()
        if number % 3:
            await reader.read(16)  # the answer has begun
        writer.transport.abort()

    async def all_leave() -> None:
        for first in range(0, 300, 100):
            await asyncio.gather(*(leave(number) for number in range(first, first + 100)))

    with undisturbed(server, expected):
        asyncio.run(all_leave())


def hostile_form(number: int) -> Body:
    """A grammar that is hard to compile or to follow, or cannot be at all, each another one."""
    match number % 7:
        case 0:
            return {"regex": f"(a|b)*a(a|b){{{200 + number}}}"}
        case 1:
            return {"grammar": "start: " + " ".join(f'"{number}x{part}"?' for part in range(2000 + number))}
        case 2:
            properties = {f"p{number}_{part}": {} for part in range(400)}
            return {"json": {"type": "object", "properties": properties}}
        case 3:
            return {"regex": f"((((a{{1,{40 + number}}}){{1,40}}){{1,40}}){{1,40}})"}
        case 4:  # rules within rules, more than a stack can hold
            rules = "\n".join(f'r{part}: "{number}" r{part + 1}?' for part in range(3000))
            return {"grammar": f'start: r0\n{rules}\nr3000: "z"'}
        case 5:  # patterns that hold together: half a minute for the engine that follows them
            patterns = [
                {"type": "string", "pattern": f"(.*{chr(97 + part)}.*){{4}}"} for part in range(16 + number % 4)
            ]
            return {"json": {"allOf": patterns}}
        case _:
            return {"choice": [f"{number}-{part}" * 20 for part in range(500)]}


def test_grammars_by_the_dozen_that_are_hard_to_compile_hold_up_nobody(
    server: Server, expected: dict[str, Told]
) -> None:
    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits) as client:
            bodies = [
                {"model": MODEL, "prompt": "a", "max_tokens": 8, "structured_outputs": hostile_form(number)}
                for number in range(50)
            ]
            return await asyncio.gather(*(client.post(COMPLETIONS, json=body) for body in bodies))

    with undisturbed(server, expected, "free", "constrained"):
        heard = asyncio.run(ask())
    assert {each.status_code for each in heard} == {200, 400}
    for each in heard:
        if each.status_code == 400:
            error = each.json()["error"]
            assert (error["param"] or "").startswith("structured_outputs"), error
