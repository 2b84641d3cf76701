"""The engine in its own process, as the API process sees it: tokens, refusals, aborts, death and return."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest

from leoserve.engine.client import EngineClient, EngineDied, EngineFailed, EngineRefused, EngineUnavailable
from leoserve.engine.config import EngineConfig
from leoserve.engine.request import Abort, Request, SamplingParams, TokenOutput
from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, clean_environment


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "leo", "7b")


def config(folder: Path, **options) -> EngineConfig:
    settings = {"num_kv_blocks": 64, "block_size": 16, "max_model_len": 1024, "threads": 1, "max_num_seqs": 4}
    return EngineConfig(model=str(folder), device="cpu", **(settings | options))


@pytest.fixture
async def client(checkpoint: Path, request: pytest.FixtureRequest) -> AsyncIterator[EngineClient]:
    client = EngineClient(config(checkpoint, **getattr(request, "param", {})))
    client.spawn()
    await client.start()
    await client.wait_ready()
    yield client
    await client.stop()


def make(name: str, *, prompt: list[int] | None = None, max_tokens: int = 8, **params) -> Request:
    sampling = SamplingParams(**({"max_tokens": max_tokens, "temperature": 0.0} | params))
    return Request(request_id=name, prompt=prompt or [1, 2, 3], params=sampling, arrival=time.monotonic())


async def collect(client: EngineClient, request: Request) -> list[TokenOutput]:
    return [output async for output in client.generate(request)]


async def until_idle(client: EngineClient) -> None:
    """All blocks free again, as the engine itself reports."""
    while client.stats.running or client.stats.waiting or client.stats.blocks_used:
        await asyncio.sleep(0.01)


async def test_many_requests_at_once_each_get_their_tokens(client: EngineClient) -> None:
    answers = await asyncio.gather(*(collect(client, make(f"r{number}", n=2)) for number in range(20)))
    for outputs in answers:
        for index in range(2):
            mine = [output for output in outputs if output.index == index]
            assert sum(len(output.token_ids) for output in mine) == 8
            assert [output.finish_reason for output in mine] == [None] * (len(mine) - 1) + ["length"]
    assert client.in_flight == 0
    await until_idle(client)


async def test_closing_the_stream_frees_its_blocks(client: EngineClient) -> None:
    stream = client.generate(make("left", max_tokens=900))
    await anext(stream)
    assert client.stats.running == 1
    await stream.aclose()
    await until_idle(client)


async def test_one_aborted_choice_ends_and_the_other_goes_on(client: EngineClient) -> None:
    reasons = {}
    async for output in client.generate(make("two", n=2, max_tokens=60)):
        if output.index == 0 and output.finish_reason is None:
            client.abort("two", 0)
        reasons[output.index] = output.finish_reason
    assert reasons == {0: None, 1: "length"}
    await until_idle(client)


@pytest.mark.parametrize("client", [{"max_waiting_requests": 6}], indirect=True)
async def test_what_exceeds_the_queue_is_refused_and_the_rest_is_answered(client: EngineClient) -> None:
    tasks = [asyncio.create_task(collect(client, make(f"r{number}", max_tokens=200))) for number in range(60)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, EngineRefused)]
    answered = [result for result in results if isinstance(result, list)]
    assert len(refused) + len(answered) == 60, results
    assert {error.kind for error in refused} == {"overloaded"}
    assert len(answered) >= 6
    await until_idle(client)


async def test_what_can_never_fit_is_refused_with_the_limit(client: EngineClient) -> None:
    with pytest.raises(EngineRefused, match="1024") as caught:
        await collect(client, make("big", prompt=[1] * 500, max_tokens=600))
    assert caught.value.kind == "never_fits"


async def test_a_killed_engine_fails_what_runs_and_comes_back_by_itself(client: EngineClient) -> None:
    stream = client.generate(make("running", max_tokens=900))
    await anext(stream)
    (engine,) = [child for child in psutil.Process().children() if "leoserve.engine.process" in child.cmdline()]
    engine.kill()
    with pytest.raises(EngineDied):
        async for _ in stream:
            pass
    assert client.state == "restarting"
    with pytest.raises(EngineUnavailable) as caught:
        await collect(client, make("too-early"))
    assert 0 < caught.value.retry_after <= 120
    while client.state != "ready":
        await asyncio.sleep(0.05)
    assert len(await collect(client, make("afterwards"))) == 8
    assert client.restarts == 1


async def killed(client: EngineClient) -> None:
    """End the engine, and wait until the client has noticed."""
    client._connection.process.kill()
    while client.state == "ready":
        await asyncio.sleep(0.01)


async def test_a_start_that_fails_is_tried_again(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spawn, attempts = client.spawn, []

    def fail_twice() -> None:
        attempts.append(client.healthy)
        if len(attempts) <= 2:
            raise OSError("no more processes")
        spawn()

    monkeypatch.setattr(client, "spawn", fail_twice)
    await killed(client)
    while client.state != "ready":
        await asyncio.sleep(0.05)
    assert attempts == [True, True, True]  # still healthy
    assert "no more processes" in caplog.text
    assert len(await collect(client, make("afterwards"))) == 8


async def test_an_engine_that_never_comes_back_is_not_healthy(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leoserve.engine.client.LONGEST_BACKOFF", 0.01)
    monkeypatch.setattr(client, "spawn", lambda: (_ for _ in ()).throw(OSError("no more processes")))
    await killed(client)
    while client.healthy:
        await asyncio.sleep(0.01)
    assert client.restarts >= 5


async def test_the_server_can_stop_and_requests_can_end_while_the_engine_is_away(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "spawn", lambda: (_ for _ in ()).throw(OSError("no more processes")))
    stream = client.generate(make("running", max_tokens=900))
    await anext(stream)
    await killed(client)
    client.abort("running")
    await stream.aclose()
    assert await client.drain(0.0)
    await client.stop()


async def test_a_request_to_an_engine_that_has_just_died_is_an_error_and_does_not_block(client: EngineClient) -> None:
    connection = client._connection
    connection.process.kill()
    connection.process.wait()
    while connection.send(Abort(request_id="probe")):  # until the socket has noticed; the event loop has not
        time.sleep(0.001)
    with pytest.raises(EngineDied):
        await collect(client, make("too-late"))
    client.abort("unknown")


async def test_draining_lets_what_runs_finish_and_admits_nothing(client: EngineClient) -> None:
    running = asyncio.create_task(collect(client, make("running", max_tokens=50)))
    while client.in_flight == 0:
        await asyncio.sleep(0)
    draining = asyncio.create_task(client.drain(60.0))
    await asyncio.sleep(0)
    with pytest.raises(EngineUnavailable):
        await collect(client, make("late"))
    assert await draining
    assert (await running)[-1].finish_reason == "length"


async def test_a_drain_that_takes_too_long_ends_what_runs_with_an_error(client: EngineClient) -> None:
    running = asyncio.create_task(collect(client, make("running", max_tokens=1000)))
    while client.in_flight == 0:
        await asyncio.sleep(0)
    assert not await client.drain(0.0)
    with pytest.raises(EngineDied):
        await running


async def test_the_sockets_are_the_users_alone_and_go_with_the_engine(checkpoint: Path) -> None:
    client = EngineClient(config(checkpoint))
    client.spawn()
    await client.start()
    await client.wait_ready()
    (engine,) = [child for child in psutil.Process().children() if "leoserve.engine.process" in child.cmdline()]
    folder = client._connection._folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(socket.stat().st_mode) for socket in folder.iterdir()} == {0o600}
    assert not list(engine.net_connections("inet"))
    await client.stop()
    assert not folder.exists()
    assert not engine.is_running()


async def test_an_engine_whose_server_is_killed_goes_and_takes_the_sockets_with_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    code = (
        "import asyncio, msgspec, sys; from leoserve.engine.client import EngineClient\n"
        "from leoserve.engine.config import EngineConfig\n"
        "async def main():\n"
        "    client = EngineClient(msgspec.json.decode(sys.argv[1], type=EngineConfig))\n"
        "    await client.start(); await client.wait_ready(); print('ready', flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    with tempfile.TemporaryDirectory(prefix="leo") as scratch:
        server = subprocess.Popen(
            [sys.executable, "-c", code, msgspec.json.encode(config(checkpoint)).decode()],
            stdout=subprocess.PIPE,
            env=clean_environment(TMPDIR=scratch),
        )
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        (engine,) = psutil.Process(server.pid).children()
        assert len(list(Path(scratch).iterdir())) == 1
        server.kill()
        server.wait()
        engine.wait(PATIENCE)
        assert list(Path(scratch).iterdir()) == []


async def test_an_engine_that_cannot_start_says_why(tmp_path: Path, checkpoint: Path) -> None:
    client = EngineClient(config(checkpoint, num_kv_blocks=2))
    client.spawn()
    await client.start()
    with pytest.raises(EngineFailed, match=r"--max-model-len 32 fits"):
        await client.wait_ready()
    assert not client.healthy
    await client.stop()


async def test_an_idle_engine_sleeps(client: EngineClient) -> None:
    await collect(client, make("first"))
    await until_idle(client)
    (engine,) = [child for child in psutil.Process().children() if "leoserve.engine.process" in child.cmdline()]

    async def used() -> float:
        """Of a core, in a second. The clock of CPU times ticks in hundredths."""
        before, begin = engine.cpu_times(), time.monotonic()
        await asyncio.sleep(1.0)
        after = engine.cpu_times()
        return (after.user + after.system - before.user - before.system) / (time.monotonic() - begin)

    while await used() >= 0.02:  # what it had left to do first; one that looks for work never gets there
        pass


async def test_health_is_about_progress(checkpoint: Path) -> None:
    client = EngineClient(config(checkpoint), stall_timeout=0.0)
    assert client.healthy  # nothing waits
    client.spawn()
    await client.start()
    await client.wait_ready()
    os.kill(client._connection.process.pid, 19)  # SIGSTOP: alive, and doing nothing
    for number in range(3):  # each client gives up before the next one comes
        waiting = asyncio.create_task(collect(client, make(f"stuck{number}")))
        while client.in_flight == 0:
            await asyncio.sleep(0)
        assert not client.healthy
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not client.healthy
    os.kill(client._connection.process.pid, 18)
    assert len(await collect(client, make("moves"))) == 8
    await until_idle(client)
    assert client.healthy
    await client.stop()


async def test_requests_that_were_aborted_do_not_hide_a_stall(checkpoint: Path) -> None:
    client = EngineClient(config(checkpoint), stall_timeout=0.0)
    client.spawn()
    await client.start()
    await client.wait_ready()
    os.kill(client._connection.process.pid, 19)  # SIGSTOP: alive, and doing nothing
    waiting = asyncio.create_task(collect(client, make("stuck")))
    while client.in_flight == 0:
        await asyncio.sleep(0)
    client.abort("stuck")
    assert await waiting == []
    assert not client.healthy
    os.kill(client._connection.process.pid, 18)
    assert len(await collect(client, make("moves"))) == 8
    await until_idle(client)
    assert client.healthy
    await client.stop()
