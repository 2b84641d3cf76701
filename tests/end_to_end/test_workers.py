"""Several API processes in front of one engine keep the contract of one: what is true of the server is true in each."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server

MODEL, WORKERS = "leo", 2
MOST_CONNECTIONS = 24
KEYS = "haupt\nwenig requests_per_minute=3\nknapp tokens_per_minute=100\n"


class Client:
    """One connection, which one worker has."""

    def __init__(self, server: Server, key: str = "haupt") -> None:
        address = urlsplit(server.url)
        self.http = HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE)
        self.key = key
        self.get("/health")  # an answer shows that it has been accepted

    @property
    def port(self) -> int:
        return int(self.http.sock.getsockname()[1])

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> HTTPResponse:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        self.http.request(method, path, None if body is None else json.dumps(body), headers)
        return self.http.getresponse()

    def get(self, path: str) -> tuple[int, str]:
        response = self.send("GET", path)
        return response.status, response.read().decode()

    def complete(self, **options: Any) -> tuple[int, dict[str, Any], HTTPResponse]:
        body = {"model": MODEL, "prompt": "Leo", "max_tokens": 8, "temperature": 0, "ignore_eos": True} | options
        response = self.send("POST", "/v1/completions", body)
        return response.status, json.loads(response.read()), response

    def stream(self, max_tokens: int) -> HTTPResponse:
        """A running answer, its first chunk already there."""
        body = {"model": MODEL, "prompt": "Leo", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        response = self.send("POST", "/v1/completions", body)
        assert response.status == 200
        assert response.readline().startswith(b"data: {")
        return response

    def series(self) -> dict[str, float]:
        """A scrape: every sample by its name and labels."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        samples = [sample for family in families for sample in family.samples]
        found = {f"{one.name}|{'|'.join(one.labels.values())}".rstrip("|"): one.value for one in samples}
        assert len(found) == len(samples)
        return found


def answered(series: dict[str, float]) -> float:
    return sum(count for name, count in series.items() if name.startswith("leoserve_responses_total|"))


def running(server: Server, module: str) -> list[psutil.Process]:
    """The server's children that run this module, without those that have ended."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if module in child.cmdline():
                found.append(child)
    return sorted(found, key=lambda child: child.pid)


def workers(server: Server) -> list[psutil.Process]:
    return running(server, "leoserve.workers.process")


def at_each(server: Server, key: str = "haupt") -> list[Client]:
    """A client of each worker, in their order. Which one a connection comes to is the kernel's choice."""
    found: dict[int, Client] = {}
    others = []
    while len(found) < WORKERS:
        client = Client(server, key)
        pid = next(one.pid for one in workers(server) if client.port in remote_ports(one))
        if pid in found:
            others.append(client)
        found.setdefault(pid, client)
    for client in others:
        client.http.close()
    return [found[pid] for pid in sorted(found)]


def remote_ports(process: psutil.Process) -> set[int]:
    return {one.raddr.port for one in process.net_connections("tcp") if one.raddr}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(KEYS, encoding="utf-8")
    return path


def options(*more: str) -> tuple[str, ...]:
    return ("--api-workers", str(WORKERS), "--num-kv-blocks", "512", *more)


@pytest.fixture(scope="module")
def server(serve_once: Serve, folder: Path, keys: Path) -> Server:
    most = str(MOST_CONNECTIONS)
    return serve_once(folder, *options("--api-key-file", str(keys), "--max-connections", most))


@pytest.fixture
def clients(server: Server) -> Iterator[list[Client]]:
    """One of each worker, and no other connection."""
    both = at_each(server)
    while both[0].series()["leoserve_connections"] > len(both):
        time.sleep(0.01)
    yield both
    for client in both:
        client.http.close()


def test_streams_of_the_sdk_are_whole_and_equal_whichever_worker_has_them(server: Server) -> None:
    def ask(number: int) -> tuple[str, str | None, int]:
        client = server.openai(api_key="haupt")
        chunks = client.completions.create(
            model=MODEL, prompt="Leo", max_tokens=30, temperature=0, logprobs=2, stream=True,
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        *pieces, last = list(chunks)
        text = "".join(piece.choices[0].text for piece in pieces)
        client.close()
        return text, pieces[-1].choices[0].finish_reason, last.usage.completion_tokens

    with ThreadPoolExecutor(12) as threads:
        answers = set(threads.map(ask, range(12)))
    assert len(answers) == 1
    assert {(finish, tokens) for _, finish, tokens in answers} == {("length", 30)}


def test_a_scrape_tells_of_the_whole_server_whichever_worker_it_asks(clients: list[Client]) -> None:
    before = clients[0].series()
    for client in clients:
        assert client.complete(max_tokens=5)[0] == 200
        assert client.complete(temperature=9)[0] == 400
    while answered(clients[0].series()) < answered(before) + 4:  # an answer is there before it is counted
        time.sleep(0.001)
    told = [client.series() for client in clients]
    for after in told:
        for name, more in {
            "leoserve_requests_finished_total|length": 2,
            "leoserve_requests_rejected_total|invalid": 2,
            "leoserve_responses_total|200": 2,
            "leoserve_generation_tokens_total": 10,
            "leoserve_time_to_first_token_seconds_count": 2,
            "leoserve_time_to_first_token_seconds_bucket|+Inf": 2,
            "leoserve_request_generation_tokens_sum": 10,
            "leoserve_engine_steps_total": after["leoserve_step_tokens_count"] - before["leoserve_step_tokens_count"],
        }.items():
            assert after[name] == before[name] + more, name
        assert (after["leoserve_requests_running"], after["leoserve_connections"]) == (0, 2)
        assert (after["leoserve_ready"], after["leoserve_connections_limit"]) == (1, MOST_CONNECTIONS)
        names = [name.partition("|")[0] for name in after]
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"):
            assert names.count(f"vllm:{name}") == 1
    steady = [
        {name: value for name, value in one.items() if not name.startswith(("process_", "leoserve_engine_process_"))}
        for one in told
    ]
    assert steady[0] == steady[1]
    cores = told[1]["process_cpu_seconds_total"]
    assert cores >= told[0]["process_cpu_seconds_total"] > 0
    assert told[0]["process_resident_memory_bytes"] > 3 * 20_000_000  # of the supervisor and two workers


def test_what_the_server_calls_itself_is_the_same_everywhere(clients: list[Client]) -> None:
    for path in ("/v1/models", "/version", "/health", "/ready"):
        assert clients[0].get(path) == clients[1].get(path)
        assert clients[0].get(path)[0] == 200
    fingerprints = {client.complete()[1]["system_fingerprint"] for client in clients}
    assert len(fingerprints) == 1


def test_requests_that_bring_no_seed_are_answered_differently_by_each_worker(clients: list[Client]) -> None:
    texts = {client.complete(temperature=1, max_tokens=30)[1]["choices"][0]["text"] for client in clients}
    assert len(texts) == WORKERS


def test_a_limit_per_minute_is_the_servers(server: Server) -> None:
    first, second = at_each(server, "wenig")
    asked = [client.complete(model="kein") for client in (first, second, first, second, first)]
    assert [status for status, _, _ in asked] == [404, 404, 404, 429, 429]
    assert [answer.getheader("x-ratelimit-remaining-requests") for _, _, answer in asked] == ["2", "1", "0", "0", "0"]
    first, second = at_each(server, "knapp")
    status, answer, _ = first.complete(max_tokens=60)
    assert status == 200
    used = answer["usage"]["total_tokens"]
    status, answer, _ = second.complete(max_tokens=60)
    assert (status, answer["error"]["type"]) == (429, "tokens")
    told = re.search(r"Used (\d+), Requested (\d+)", answer["error"]["message"])
    assert told is not None
    assert 0 < int(told[1]) <= used == int(told[2])  # a little has come back meanwhile


def test_a_new_file_of_keys_holds_in_every_worker_at_once_and_is_told_of_once(
    server: Server, clients: list[Client], keys: Path
) -> None:
    keys.write_text(KEYS + "neu\n", encoding="utf-8")
    for client in clients:
        client.key = "neu"
        assert client.get("/v1/models")[0] == 200
    keys.write_text(KEYS, encoding="utf-8")
    for client in clients:
        assert client.get("/v1/models")[0] == 401
    assert server.stderr.count("4 keys, before 3") == 1
    assert server.stderr.count("3 keys, before 4") == 1


def test_connections_are_limited_for_all_workers_together(server: Server, clients: list[Client]) -> None:
    more = [Client(server) for _ in range(MOST_CONNECTIONS + 6 - len(clients))]
    statuses = [client.get("/v1/models")[0] for client in [*clients, *more]]
    assert statuses == [200] * MOST_CONNECTIONS + [503] * 6
    assert all(client.get("/health")[0] == 200 for client in more)
    assert clients[0].series()["leoserve_connections"] == MOST_CONNECTIONS + 6
    for client in more:
        client.http.close()


def test_a_killed_worker_loses_its_answers_alone_frees_their_blocks_and_comes_back(
    server: Server, clients: list[Client]
) -> None:
    before = clients[1].series()
    victim = workers(server)[0]
    lost, kept = clients[0].stream(3000), clients[1].stream(200)
    victim.kill()
    assert kept.read().endswith(b"data: [DONE]\n\n")
    while clients[1].series()["leoserve_kv_blocks_used"]:
        time.sleep(0.01)
    with pytest.raises((ConnectionError, HTTPException)):
        lost.read()
    server.wait_for(r"API worker 1 ended with code -9; answers cut off: 1; restarting it in 0 s")
    clients[0].http.close()
    first, second = at_each(server)
    assert victim.pid not in {one.pid for one in workers(server)}
    assert [client.complete()[0] for client in (first, second)] == [200, 200]
    after = first.series()
    assert after["leoserve_engine_restarts_total"] == before["leoserve_engine_restarts_total"]
    assert after["leoserve_api_worker_restarts_total"] == before["leoserve_api_worker_restarts_total"] + 1
    assert all(
        after[name] >= before[name] for name in before if name.endswith(("_total", "_count")) or "_bucket|" in name
    )


def test_a_killed_engine_fails_the_answers_of_all_workers_and_is_started_again_once(
    server: Server, clients: list[Client]
) -> None:
    old, watchers = server.engine, at_each(server)
    streams = [client.stream(3000) for client in clients]
    old.kill()
    for stream in streams:
        assert b"is being restarted" in stream.read()
    for watcher in watchers:
        while watcher.get("/ready")[0] != 200:
            time.sleep(0.02)
    assert server.engine.pid != old.pid
    for watcher in watchers:
        assert watcher.complete()[0] == 200
        assert watcher.series()["leoserve_engine_restarts_total"] == 1
    assert server.stderr.count("the engine serves again") == 1


def test_a_signal_drains_all_workers_and_a_second_one_ends_them(serve: Serve, folder: Path) -> None:
    server = serve(folder, *options("--shutdown-grace", "60"))
    children = psutil.Process(server.process.pid).children(recursive=True)
    askers, watchers = at_each(server), at_each(server)
    streams = [client.stream(tokens) for client, tokens in zip(askers, (600, 7000), strict=True)]
    server.process.send_signal(signal.SIGTERM)
    with server.held():
        server.wait_for("stopping; running answers: 2")
        for watcher in watchers:
            while watcher.get("/ready")[0] != 503:  # the supervisor knows first
                time.sleep(0.001)
            assert watcher.complete()[0] == 503
    assert streams[0].read().endswith(b"data: [DONE]\n\n")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert b"shutting down" in streams[1].read()
    assert gone(children)
    assert "Traceback" not in server.stderr
    for line in ("stopping", "stopping at once; answers cut off: 1"):
        assert server.stderr.count(line) <= 2


def test_a_worker_that_hangs_is_replaced_and_an_engine_that_hangs_is_told_by_all_workers(
    serve: Serve, folder: Path
) -> None:
    server = serve(folder, *options("--stall-timeout", "3"))
    hanging = workers(server)[0]
    watchers = at_each(server)
    stream = watchers[1].stream(3000)
    server.engine.suspend()
    hanging.suspend()
    server.wait_for("API worker 1 has hung for 3 s")
    watchers = at_each(server)
    assert hanging.pid not in {one.pid for one in workers(server)}
    for watcher in watchers:
        while watcher.get("/health")[0] == 200:
            time.sleep(0.02)
    server.engine.resume()
    for watcher in watchers:
        while watcher.get("/health")[0] == 503:
            time.sleep(0.02)
    stream.close()
    kill_and_see_the_end(server)


def test_a_port_that_workers_have_is_taken_for_others(serve: Serve, server: Server, folder: Path) -> None:
    port = urlsplit(server.url).port
    second = serve(folder, *options("--port", str(port)), wait=False)
    assert second.process.wait(PATIENCE) == 2
    assert f"port {port} on 127.0.0.1 is in use" in second.stderr


def test_a_server_that_has_drained_all_its_workers_ends_with_0(server: Server, clients: list[Client]) -> None:
    """The last of the tests that share this server."""
    streams = [client.stream(1000) for client in clients]
    server.process.send_signal(signal.SIGTERM)
    assert all(stream.read().endswith(b"data: [DONE]\n\n") for stream in streams)
    assert server.process.wait(PATIENCE) == 0


def kill_and_see_the_end(server: Server) -> None:
    """Nothing outlives a server that is killed."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert len(children) == WORKERS + 1
    server.process.kill()
    assert gone(children)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all come to their end."""
    return not psutil.wait_procs(processes, timeout=PATIENCE)[1]
