"""What a token and a request cost the API process, with an engine behind it that costs nothing.

    python bench/apicost.py --out bench/results/apicost.json

Serves the demo model as `leoserve serve` does, but for the engine's process: in its place stands one that speaks the
same records over the same sockets and gives every running sequence a token at each step, without computing any. A
client that parses nothing streams completions, and the CPU time of the API process's threads is read before and after
from the scheduler's statistics. A busy machine changes it far less than it changes any time that passes.

Prints JSON: for each number of streams the microseconds of CPU for each streamed token, by part, while all streams run;
and those of a whole request that streams one token, sent one after another over connections that stay open. With
`--api-workers N` these are told of all workers together and of the process above them.

To see where the time goes: `--hold` prints the process ids and streams until Ctrl-C, for `py-spy record --pid`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
SAID = "Die Hauptstadt von Frankreich ist Paris; schöne Grüße aus Köln, über alle Straßen hinweg.\n"
PROMPT = "Die Straße führt am Fluss entlang. " * 12  # about 128 tokens
LEVELS = {1: 1500, 16: 800, 64: 400, 256: 120}  # streams: tokens of each
STEP_SECONDS, STEP_SECONDS_EACH = 0.002, 0.00015  # a step's length, and what each sequence adds to it
REQUESTS, WARM_UP = 600, 50
READY = b"leoserve is ready"


def serve(port: int, workers: int) -> NoReturn:
    """The API process: the command's own, but for the program that it starts as the engine."""
    from leoserve import serve as server
    from leoserve.engine import connection
    from leoserve.settings import Settings

    connection.ENGINE = (str(Path(__file__).resolve()), "--role", "engine")
    sys.exit(server.serve(Settings(port=port, api_workers=workers)))


def engine() -> NoReturn:
    """The engine's process: a token for every running sequence at every step."""
    import msgspec
    import zmq

    from leoserve import demo
    from leoserve.engine.connection import Launch
    from leoserve.engine.request import Abort, EngineStats, Ready, Request, StepOutputs, ToEngine, TokenOutput
    from leoserve.text.tokenizer import Tokenizer

    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=Launch)
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    said = Tokenizer.load(demo.model_path()).encode(SAID, add_bos=False)
    context = zmq.Context()
    requests, results = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for line, address in ((requests, launch.requests), (results, launch.results)):
        line.set_hwm(0)
        line.connect(address)
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(ToEngine).decode
    results.send(encode(Ready(16_384, 16, 65_536, 32_000, 256, "none", "none", "none", 0)))
    running: dict[str, tuple[int, Iterator[int]]] = {}  # tokens to go, and what comes next
    stats = EngineStats()
    next_step = time.monotonic()
    while True:
        wait = max(0.0, next_step - time.monotonic()) * 1000 if running else None
        while requests.poll(wait):
            message = decode(requests.recv())
            if isinstance(message, Request):
                running[message.request_id] = (message.params.max_tokens, itertools.cycle(said))
            elif isinstance(message, Abort):
                running.pop(message.request_id, None)
            wait = max(0.0, next_step - time.monotonic()) * 1000
        begin = time.monotonic()
        next_step = begin + STEP_SECONDS + STEP_SECONDS_EACH * len(running)
        outputs = []
        for name, (left, tokens) in list(running.items()):
            ends = left == 1
            outputs.append(
                TokenOutput(name, 0, [next(tokens)], finish_reason="length" if ends else None, scheduled_at=begin)
            )
            running[name] = (left - 1, tokens)
            if ends:
                del running[name]
        stats.steps += 1
        stats.running = stats.step_tokens = len(outputs)
        results.send(encode(StepOutputs(outputs, stats)))


Processes = dict[str, list[int]]  # ids, by what they do


@contextmanager
def served(workers: int) -> Iterator[tuple[int, Processes]]:
    """The port of a server, and its processes without the engine's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    paths = os.pathsep.join(str(ROOT / root) for root in ("server", "kernels"))
    command = [sys.executable, __file__, "--role", "server", "--port", str(port), "--api-workers", str(workers)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE) as process:
        if process.stderr is None:
            raise RuntimeError("the server has no standard error")
        said = []
        for line in process.stderr:
            said.append(line)
            if READY in line:
                break
        else:
            raise RuntimeError(b"".join(said).decode())
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield (
            port,
            {"supervisor": [process.pid], "workers": children(process.pid)}
            if workers > 1
            else {"API process": [process.pid]},
        )
        process.terminate()


def children(pid: int) -> list[int]:
    """Those of its children that are workers."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed if b"leoserve.workers" in Path(f"/proc/{child}/cmdline").read_bytes()]


@dataclass
class Cpu:
    """CPU seconds of processes: of the threads that run their event loops, and of all others."""

    user: float = 0.0
    system: float = 0.0
    sockets: float = 0.0  # the thread that moves bytes between ZeroMQ's queues and the engine's socket
    others: float = 0.0

    @classmethod
    def of(cls, pids: list[int]) -> Cpu:
        cpu = cls()
        for task in (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()):
            seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
            name, _, rest = (task / "stat").read_text().partition(") ")
            if int(task.name) in pids:
                user, system = (int(ticks) for ticks in rest.split()[11:13])
                share = user / max(user + system, 1)  # ticks are coarse: they only divide the seconds
                cpu.user += seconds * share
                cpu.system += seconds * (1 - share)
            elif "ZMQ" in name:
                cpu.sockets += seconds
            else:
                cpu.others += seconds
        return cpu

    def since(self, before: Cpu, count: int) -> dict[str, float]:
        """Microseconds for each of `count`, by part and in all."""
        parts = {name: (value - getattr(before, name)) / count * 1e6 for name, value in vars(self).items()}
        return {name: round(value, 2) for name, value in (parts | {"all": sum(parts.values())}).items()}


def cost(processes: Processes, before: dict[str, Cpu], count: int) -> dict[str, Any]:
    """What each group of processes has used since, for each of `count`; of one group alone without its name."""
    told = {name: Cpu.of(pids).since(before[name], count) for name, pids in processes.items()}
    return told if len(told) > 1 else next(iter(told.values()))


def now(processes: Processes) -> dict[str, Cpu]:
    return {name: Cpu.of(pids) for name, pids in processes.items()}


@dataclass
class Stream:
    """One streamed answer, as raw bytes."""

    socket: socket.socket
    chunks: int = 0
    tail: bytes = field(default=b"")

    def ask(self, tokens: int) -> None:
        body = json.dumps({"model": "leoserve-demo", "prompt": PROMPT, "max_tokens": tokens, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)
        self.chunks, self.tail = 0, b""

    def read(self) -> bool:
        """Take in what has come. True at the end."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server hung up")
        self.chunks += data.count(b"data: ")
        self.tail = (self.tail + data)[-8:]
        return self.tail.endswith(b"0\r\n\r\n")


def connect(port: int) -> Stream:
    made = socket.create_connection(("127.0.0.1", port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Stream(made)


def tokens_cost(port: int, processes: Processes, count: int, tokens: int) -> dict[str, Any]:
    """The cost of a token while `count` streams run."""
    streams = [connect(port) for _ in range(count)]
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
            stream.ask(tokens)
        before: dict[str, Cpu] | None = None
        since = 0
        told: dict[str, Any] = {}
        ended = False
        while not ended:
            for key, _ in selector.select():
                ended |= key.data.read()
            if before is None and all(stream.chunks > 8 for stream in streams):
                before, since = now(processes), sum(stream.chunks for stream in streams)
            elif before is not None and all(stream.chunks < tokens - 8 for stream in streams):
                seen = sum(stream.chunks for stream in streams) - since
                told = cost(processes, before, max(1, seen))
    for stream in streams:
        stream.socket.close()
    if before is None:
        raise RuntimeError(f"{count} streams never ran at once")
    return told


def requests_cost(port: int, processes: Processes, count: int) -> dict[str, Any]:
    """The cost of a request that streams one token, while `count` connections send one after another."""
    begun = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            stream = connect(port)
            selector.register(stream.socket, selectors.EVENT_READ, stream)
            stream.ask(1)
        ended = 0
        while ended < REQUESTS:
            for key, _ in selector.select():
                if key.data.read():
                    ended += 1
                    key.data.ask(1)
            if ended >= WARM_UP and not begun:
                before, begun = now(processes), ended
        told = cost(processes, before, ended - begun)
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    return told


def measure(workers: int) -> dict[str, Any]:
    with served(workers) as (port, processes):
        requests_cost(port, processes, 4 * workers)
        figures = {
            "us_per_token": {count: tokens_cost(port, processes, count, tokens) for count, tokens in LEVELS.items()},
            "us_per_request": {count: requests_cost(port, processes, count) for count in (1, 16)},
        }
    return {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(), **figures}


def hold(count: int, workers: int) -> None:
    with served(workers) as (port, processes):
        print(*(f"{name}: {pid}" for name, pids in processes.items() for pid in pids), flush=True)
        while True:
            tokens_cost(port, processes, count, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON, beside the standard output")
    parser.add_argument("--hold", type=int, metavar="STREAMS", help="stream until interrupted, for a profiler")
    parser.add_argument("--api-workers", type=int, default=1, metavar="N", help="API processes [default: 1]")
    parser.add_argument("--role", choices=["server", "engine"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "server":
        serve(options.port, options.api_workers)
    if options.role == "engine":
        engine()
    if options.hold:
        hold(options.hold, options.api_workers)
    told = json.dumps(measure(options.api_workers), indent=2)
    print(told)
    if options.out:
        options.out.write_text(told + "\n")


if __name__ == "__main__":
    main()
