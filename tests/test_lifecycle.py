"""leoserve.lifecycle, on real servers: signals, draining, exit codes, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
import psutil
import pytest

from leoserve.engine.client import EngineClient
from leoserve.lifecycle import Front, Lifecycle
from leoserve.webserver import connections
from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server, clean_environment

LONG = 8000  # tokens: far more than a test waits for


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "leo", "7b")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="leo") as folder:
        yield Path(folder)


@pytest.fixture
def start(serve: Serve, checkpoint: Path, scratch: Path) -> Iterator[Serve]:
    """Start a server of the checkpoint; after the test no process of its tree and no file of its making is left."""
    started: list[Server] = []
    children: list[psutil.Process] = []

    def begin(
        model: Path | str | None, *arguments: str, wait: bool = True, env: dict[str, str] | None = None
    ) -> Server:
        server = serve(model, "--num-kv-blocks", "512", *arguments, wait=wait, env={"TMPDIR": str(scratch)})
        started.append(server)
        children.extend(psutil.Process(server.process.pid).children(recursive=True))
        return server

    yield begin
    assert all(server.process.poll() is not None for server in started)
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert list(scratch.iterdir()) == []


def stream(server: Server, max_tokens: int) -> Any:
    """A running answer, its first text already there."""
    chunks = server.openai().completions.create(
        model="leo", prompt="Leo", max_tokens=max_tokens, stream=True, extra_body={"ignore_eos": True}
    )
    next(chunks)
    return chunks


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_ends_with_0(start: Serve, checkpoint: Path, number: signal.Signals) -> None:
    assert start(checkpoint).stop(number) == 0


def test_a_server_that_is_loading_ends_with_0(start: Serve, checkpoint: Path) -> None:
    server = start(checkpoint, wait=False)
    assert httpx2.get(f"{server.url}/health", timeout=PATIENCE).status_code == 200  # from here on it knows of signals
    assert server.stop() == 0


def test_a_running_answer_finishes_after_the_signal(start: Serve, checkpoint: Path) -> None:
    server = start(checkpoint)
    chunks = stream(server, 1000)
    server.process.send_signal(signal.SIGTERM)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == "length"
    assert server.process.wait(PATIENCE) == 0


def test_while_draining_new_requests_get_503_and_a_second_signal_ends_it_at_once(
    start: Serve, checkpoint: Path
) -> None:
    server = start(checkpoint)
    chunks = stream(server, LONG)
    server.process.send_signal(signal.SIGINT)
    with server.held():
        server.wait_for("stopping")
        assert httpx2.get(f"{server.url}/ready", timeout=PATIENCE).status_code == 503
        with pytest.raises(openai.APIStatusError) as refused:
            server.openai().completions.create(model="leo", prompt="Leo")
    assert refused.value.status_code == 503
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 120
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE) == 128 + signal.SIGINT
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        list(chunks)
    server.wait_for("answers cut off: 1")
    assert "Traceback" not in server.stderr


def test_an_answer_that_outlives_the_grace_gets_an_error_event(start: Serve, checkpoint: Path) -> None:
    server = start(checkpoint, "--shutdown-grace", "0.1")
    chunks = stream(server, LONG)
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="shutting down"):
        list(chunks)
    assert server.process.wait(PATIENCE) == 0


def test_the_block_at_the_start_says_where_and_what(start: Serve, checkpoint: Path) -> None:
    names = ["--served-model-name", "leo-lion", "--served-model-name", "leo-2"]
    server = start(checkpoint, *names, "--root-path", "/llm")
    assert server.wait_for(r"base URL +(\S+)")[1] == f"{server.url}/v1"
    assert server.wait_for(r"model id +(\S+)")[1] == "leo-lion"
    server.wait_for(f"curl {server.url}/v1/chat/completions")
    server.wait_for(r"options .*num_kv_blocks 512")
    assert [model.id for model in server.openai().models.list()] == ["leo-lion", "leo-2"]
    assert httpx2.get(f"{server.url}/openapi.json", timeout=PATIENCE).json()["servers"] == [{"url": "/llm"}]
    assert "(GET /llm/nichts)" in httpx2.get(f"{server.url}/nichts", timeout=PATIENCE).json()["error"]["message"]
    server.stop()


def test_machines_get_one_json_object_a_line(start: Serve, checkpoint: Path) -> None:
    server = start(checkpoint, "--log-format", "json")
    server.stop()
    events = [json.loads(line) for line in server.stderr.splitlines()]
    assert {"starting", "ready"} <= {event["message"] for event in events}


ENGINE = """
import os, signal, sys, threading
from leoserve import cli, lifecycle, serve

class Engine:
    def __init__(self, config, *, tokens, stall_timeout):
        print("patience", stall_timeout)
    def spawn(self):
        if "interrupted" in sys.argv:
            os.kill(os.getpid(), signal.SIGTERM)
        print("spawned")
    async def stop(self):
        print("stopped")
    stats = ready = None

serve.EngineClient = Engine
"""
BUSY = """
import asyncio
def run(front, *others):
    begun = threading.Event()
    def work():
        begun.set()
        threading.Event().wait()
    async def live():
        asyncio.ensure_future(front.config.app.state.context.threads.run(work))
        await asyncio.to_thread(begun.wait)
        return 130
    return asyncio.new_event_loop().run_until_complete(live())
lifecycle.run = run
"""


def command(script: str, checkpoint: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`leoserve serve` of the checkpoint, after `script`; the further arguments are for the script."""
    code = f"{script}\nsys.exit(cli.main(['serve', {str(checkpoint)!r}, '--port', '0', '--stall-timeout', '7']))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )


def test_a_thread_busy_with_a_text_does_not_hold_up_the_end(checkpoint: Path) -> None:
    done = command(ENGINE + BUSY, checkpoint)
    assert done.returncode == 130
    assert done.stdout.split("\n") == ["patience 7.0", "spawned", "stopped", ""]


def test_a_signal_while_the_engine_is_being_started_leaves_nothing(checkpoint: Path) -> None:
    done = command(ENGINE, checkpoint, "interrupted")
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout.split("\n") == ["patience 7.0", "spawned", "stopped", ""]


async def test_draining_that_goes_wrong_still_ends_the_server() -> None:
    class Engine:
        in_flight = 0
        stopped = 0

        async def start(self) -> None: ...

        async def wait_ready(self) -> None:
            await asyncio.Event().wait()

        async def drain(self, grace: float) -> None:
            raise KeyError("a fault in draining")

        async def stop(self) -> None:
            self.stopped += 1

    class Http:
        should_exit = False

        async def serve(self, sockets: object) -> None:
            lifecycle.on_signal(signal.SIGTERM)
            while not self.should_exit:
                await asyncio.sleep(0)

    engine, http = Engine(), Http()
    lifecycle = Lifecycle(cast(Front, http), cast(EngineClient, engine), 1.0, lambda ready: None)
    with pytest.raises(KeyError, match="a fault in draining"):
        await asyncio.wait_for(lifecycle.live([]), PATIENCE)
    assert engine.stopped == 1


@pytest.mark.parametrize(
    ("soft", "hard", "served", "raised"),
    [
        (10_000, 10_000, 1000, None),
        (1024, 10_000, 1000, 1384),
        (500, 500, 116, 500),
        (64, resource.RLIM_INFINITY, 1000, 1384),
    ],
)
def test_open_files_are_enough_for_the_connections(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, served: int, raised: int | None
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append(limit))
    assert connections(1000) == served
    assert limits[1:] == ([] if raised is None else [(raised, hard)])
