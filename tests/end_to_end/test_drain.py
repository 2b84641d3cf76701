"""A server under load that is told to end breaks no answer, and one whose engine hangs says so."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server

from .answers import events, streamed_choices, whole_choices

MODEL = "leo"
PLACES, REQUESTS, TOKENS = 8, 40, 500
STALL = 2.0  # seconds
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"

Body = dict[str, Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b")


@asynccontextmanager
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits) as http:
        yield http


def body(number: int) -> tuple[str, Body]:
    """One of four kinds of requests: a chat or prompts, streamed or whole, of two choices each."""
    common: Body = {"model": MODEL, "max_tokens": TOKENS, "ignore_eos": True, "seed": number}
    if number % 2:
        common |= {"stream": True, "stream_options": {"include_usage": True}}
    if number % 4 < 2:
        return CHATS, common | {"messages": [{"role": "user", "content": f"Frage {number}"}], "n": 2}
    return COMPLETIONS, common | {"prompt": [f"Es war einmal {number}", "Die Stadt liegt am Fluss"]}


async def ask(http: httpx.AsyncClient, number: int) -> httpx.Response:
    """The whole answer, its stream read to the end."""
    path, asked = body(number)
    return await http.post(path, json=asked)


def check_complete(number: int, response: httpx.Response) -> None:
    """Nothing of the answer is missing: both choices, each to its last token, and the end of a stream."""
    assert response.status_code == 200, response.text
    asked = body(number)[1]
    if asked.get("stream"):
        chunks = events(response.text)
        choices, usage = streamed_choices(asked, chunks), chunks[-1]["usage"]
    else:
        choices, usage = whole_choices(asked, response.json()), response.json()["usage"]
    assert [choice["finish"] for choice in choices] == ["length", "length"]
    assert usage["completion_tokens"] == 2 * TOKENS


def check_refused(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert 0 < int(response.headers["retry-after"]) <= 120
    assert response.headers["connection"] == "close", "a client that comes back has to find another server"


async def gauges(http: httpx.AsyncClient) -> dict[str, float]:
    lines = (await http.get("/metrics")).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Ask again and again; the test's own time is the limit."""
    while not await condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_all_that_was_asked_before_the_signal_is_answered_and_nothing_after_it_is(
    serve: Serve, checkpoint: Path, workers: str
) -> None:
    server = serve(checkpoint, "--num-kv-blocks", "512", "--max-num-seqs", str(PLACES), "--api-workers", workers)
    async with client(server) as http:

        async def admitted() -> bool:
            """All choices run, wait or have ended, and some wait."""
            assert not all(task.done() for task in asked), "the answers have to be longer than asking for them takes"
            told = await gauges(http)
            ended = told['leoserve_requests_finished_total{reason="length"}']
            running, waiting = told["leoserve_requests_running"], told["leoserve_requests_waiting"]
            return ended + running + waiting == 2 * REQUESTS and running == PLACES and waiting > 0

        asked = [asyncio.create_task(ask(http, number)) for number in range(REQUESTS)]
        await until(admitted)
        server.process.send_signal(signal.SIGTERM)
        late = [asyncio.create_task(ask(http, number)) for number in range(REQUESTS)]  # some of them on the way with it
        with server.held():
            await asyncio.to_thread(server.wait_for, "stopping")
            ready, health, refused = await asyncio.gather(http.get("/ready"), http.get("/health"), ask(http, 0))
            assert not all(task.done() for task in asked), "the answers have to be longer than a signal takes"
        check_refused(ready)
        assert health.status_code == 200
        check_refused(refused)
        for number, answer in enumerate(await asyncio.gather(*asked)):
            check_complete(number, answer)
        for number, answer in enumerate(await asyncio.gather(*late)):
            if answer.status_code == 200:
                check_complete(number, answer)
            else:
                check_refused(answer)
    assert server.process.wait(PATIENCE) == 0
    assert "cut off" not in server.stderr


@pytest.fixture(scope="module")
def stalling(serve_once: Serve, checkpoint: Path) -> Server:
    """A server that computes a prompt in very many steps, and waits for a step no longer than STALL seconds. The last
    test ends it."""
    steps = ("--max-num-seqs", "4", "--max-num-batched-tokens", "4")
    return serve_once(
        checkpoint, "--num-kv-blocks", "512", "--stall-timeout", str(STALL), "--shutdown-grace", "600", *steps
    )


def long_prompt(http: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
    prompt = {"model": MODEL, "prompt": [5] * 6000, "max_tokens": 1, "ignore_eos": True}
    return asyncio.create_task(http.post(COMPLETIONS, json=prompt))


async def unhealthy(http: httpx.AsyncClient) -> bool:
    return (await http.get("/health")).status_code == 503


async def test_health_is_true_in_a_long_prefill_false_while_the_engine_hangs_and_true_when_it_goes_on(
    stalling: Server,
) -> None:
    async with client(stalling) as http:
        begin = time.monotonic()
        answer = long_prompt(http)
        while not answer.done():
            if time.monotonic() - begin < 1.5 * STALL:  # make it a slow engine, however fast the machine is
                with stalling.held():
                    await asyncio.sleep(STALL / 20)
                    assert not await unhealthy(http)
                await asyncio.sleep(STALL / 400)
            else:
                assert not await unhealthy(http)
        assert time.monotonic() - begin > STALL
        assert (await answer).status_code == 200
        with stalling.held():
            answer = long_prompt(http)
            await until(lambda: unhealthy(http))
        assert (await answer).status_code == 200
        assert not await unhealthy(http)


async def test_answers_that_a_hanging_engine_owes_are_not_waited_for_when_the_server_ends(stalling: Server) -> None:
    async with client(stalling) as http:
        stalling.engine.suspend()
        answer = long_prompt(http)
        await until(lambda: unhealthy(http))
        stalling.process.send_signal(signal.SIGTERM)
        told = await answer
    assert told.status_code == 503
    assert "shutting down" in told.json()["error"]["message"]
    assert stalling.process.wait(PATIENCE) == 0
