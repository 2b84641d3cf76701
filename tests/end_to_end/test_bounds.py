"""What a real server gives back: blocks, tokens and memory, of requests that end before their time; and what it counts
of those that it never served."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server

from .wire import answer, connected, head, idle, post, rejected, resident

MODEL = "leo"
COMPLETIONS = "/v1/completions"
LONG = {"model": MODEL, "max_tokens": 3000, "ignore_eos": True, "temperature": 0}
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b")


def until_idle(server: Server) -> None:
    """Poll without a deadline of its own: the test's is the limit."""
    while not idle(server):
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_took_too_long_frees_its_blocks(serve: Serve, folder: Path, stream: bool) -> None:
    server = serve(folder, "--num-kv-blocks", "512", "--request-timeout", "3")
    body = LONG | {"prompt": ["Es war einmal", "Leo"], "n": 16, "stream": stream}
    before = rejected(server, "timeout")
    told = httpx.post(server.url + COMPLETIONS, json=body, timeout=PATIENCE)
    assert "request_timeout" in told.text
    assert told.status_code == (200 if stream else 504)
    assert rejected(server, "timeout") == before + (not stream)
    until_idle(server)


def test_a_client_that_goes_away_has_spent_what_it_used_and_no_more(serve: Serve, folder: Path) -> None:
    limit, prompt = 6000, 1500
    server = serve(folder, "--num-kv-blocks", "512", "--tokens-per-minute", str(limit))

    def left() -> int:
        return int(httpx.get(f"{server.url}/v1/models", timeout=PATIENCE).headers["x-ratelimit-remaining-tokens"])

    body = LONG | {"prompt": [5] * prompt, "stream": True}
    with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=PATIENCE) as running:
        lines = running.iter_lines()
        next(lines)
        reserved = limit - prompt - 3000
        with server.held():
            assert left() == reserved
    while (after := left()) == reserved:
        time.sleep(0.02)
    assert 3000 < after < limit
    until_idle(server)


@pytest.fixture(scope="module")
def guarded(serve_once: Serve, folder: Path) -> Server:
    return serve_once(folder, "--num-kv-blocks", "512", "--api-key", "schluessel", "--max-connections", "4")


def keyed(server: Server, keys: Iterator[str], path: str) -> set[int]:
    """The statuses of requests with these keys, sent one after the other on one connection."""
    statuses = set()
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        for key in keys:
            statuses.add(client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code)
    return statuses


def test_many_keys_that_nobody_has_take_no_memory(guarded: Server) -> None:
    long = "x" * 8000
    assert keyed(guarded, (f"{long}{number}" for number in range(200)), "/v1/models") == {401}
    before = resident(guarded)
    assert keyed(guarded, (f"{long}{number}" for number in range(4000)), "/v1/models") == {401}
    assert resident(guarded) - before < 8 * MIB  # they are 32 MB


def test_the_limits_of_many_keys_take_as_much_memory_as_there_are_keys(
    serve: Serve, folder: Path, tmp_path: Path
) -> None:
    many = 3000
    keys = tmp_path / "keys"
    keys.write_text("".join(f"schluessel-{number} requests_per_minute=9\n" for number in range(many)))
    server = serve(folder, "--num-kv-blocks", "512", "--api-key-file", str(keys))
    names = [f"schluessel-{number}" for number in range(many)]
    before = resident(server)
    assert keyed(server, iter(names), "/v1/models") == {200}
    used = resident(server)
    assert used - before < many * 16_384
    assert keyed(server, iter(names), "/v1/models") == {200}
    assert resident(server) - used < 4 * MIB


def test_what_is_refused_on_a_connection_is_counted(guarded: Server) -> None:
    with connected(guarded) as slow:
        slow.sendall(b"GET /v1/models HTTP/1.1\r\nHost")
        large, busy = rejected(guarded, "too_large"), rejected(guarded, "unavailable")
        with connected(guarded) as wire:
            wire.sendall(head("GET", "/v1/models", "X: " + "x" * (1 << 16)))
            assert answer(wire).status_code == 431
        assert rejected(guarded, "too_large") == large + 1
        with connected(guarded), connected(guarded), connected(guarded), connected(guarded) as beyond:
            beyond.sendall(head("GET", "/v1/models"))
            assert answer(beyond).status_code == 503
            assert rejected(guarded, "unavailable") == busy + 1
        late = rejected(guarded, "timeout")
        assert answer(slow).status_code == 408
        assert rejected(guarded, "timeout") == late + 1


def test_a_text_that_is_still_tokenized_when_the_server_ends_is_a_503(serve: Serve, folder: Path) -> None:
    server = serve(folder, "--num-kv-blocks", "512", "--max-body-bytes", str(128 * MIB))
    text = b"Die Stadt liegt am Fluss. " * (4 * MIB)
    with connected(server) as wire:
        wire.sendall(post("/tokenize", b'{"prompt": "' + text + b'"}'))
        server.process.send_signal(signal.SIGTERM)
        told = answer(wire)
    assert told.status_code == 503
    assert told.json()["error"].keys() == {"message", "type", "param", "code"}
    assert told.json()["error"]["code"] == "service_unavailable"
    assert 0 < int(told.headers["retry-after"]) <= 120
    assert server.process.wait(PATIENCE) == 0
