"""Whether a server's memory stays flat: many requests, of every kind that leaves something behind, and the slope.

    python bench/soak.py --requests 20000 --minutes 10 --out bench/results/soak.json

Starts `leoserve serve` with the demo model and sends requests from `--clients` connections: streams and whole answers,
chats and completions, with log-probabilities, with tools, with a schema, with stop strings; some leave before the end,
some are refused. The resident memory of the API process and of the engine is read every second. It is spread evenly
over `--minutes`, so that what grows with time is seen as well as what grows with requests.

Prints JSON: for each process the memory at the begin of the measured part and at its end, in MB, and the slope of the
straight line through all samples by least squares, in bytes a request. The first third warms up caches (of prompts, of
compiled schemas, of the allocator) and is not measured. Exits with 1 where a request failed that should not have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
MODEL = "leoserve-demo"
WORDS = ("Haus", "Straße", "Fluss", "Garten", "Brücke", "Himmel", "Winter", "Lied", "Zug", "Markt", "Wald", "Insel")
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}
TOOL = {"type": "function", "function": {"name": "wetter", "parameters": SCHEMA}}
WARM_UP = 1 / 3  # of the requests
BLOCKS = "512"  # of the key/value cache: few, because the system gives memory to each as it is first written


@dataclass
class Sample:
    """Resident bytes of both processes, after so many requests."""

    requests: int
    seconds: float
    api: int
    engine: int


@dataclass
class Soak:
    """A run: what was answered, and the memory meanwhile."""

    url: str
    total: int
    seconds: float
    ended: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)

    async def client(self, number: int, clients: int) -> None:
        """Every `clients`-th request, each not before its time."""
        chance = random.Random(number)
        begin = time.monotonic()
        async with httpx.AsyncClient(base_url=self.url, timeout=300) as http:
            for turn in range(number, self.total, clients):
                await asyncio.sleep(begin + self.seconds * turn / self.total - time.monotonic())
                kind, answer = await one(http, chance, turn)
                self.answers[f"{kind}: {answer}"] += 1
                self.ended += 1

    async def watch(self, api: psutil.Process, engine: psutil.Process) -> None:
        begin = time.monotonic()
        while True:
            seconds = time.monotonic() - begin
            self.samples.append(Sample(self.ended, seconds, api.memory_info().rss, engine.memory_info().rss))
            await asyncio.sleep(1.0)

    async def run(self, clients: int, api: psutil.Process, engine: psutil.Process) -> None:
        watching = asyncio.create_task(self.watch(api, engine))
        await asyncio.gather(*(self.client(number, clients) for number in range(clients)))
        watching.cancel()

    def told(self) -> dict[str, Any]:
        measured = [sample for sample in self.samples if sample.requests >= WARM_UP * self.total]
        requests = [float(sample.requests) for sample in measured]
        memory = {
            name: {
                "begin_mb": round(getattr(measured[0], name) / 1e6, 1),
                "end_mb": round(getattr(measured[-1], name) / 1e6, 1),
                "bytes_per_request": round(slope(requests, [float(getattr(sample, name)) for sample in measured]), 1),
            }
            for name in ("api", "engine")
        }
        return {
            "requests": self.ended,
            "minutes": round(self.samples[-1].seconds / 60, 2),
            "measured_requests": int(requests[-1] - requests[0]),
            "memory": memory,
            "answers": dict(sorted(self.answers.items())),
            "samples_mb": [
                [sample.requests, round(sample.api / 1e6, 2), round(sample.engine / 1e6, 2)]
                for sample in self.samples[:: max(1, len(self.samples) // 60)]
            ],
        }


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the line through the points by least squares."""
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


async def one(http: httpx.AsyncClient, chance: random.Random, turn: int) -> tuple[str, str]:
    """One request of a kind drawn by chance: its name, and what became of it."""
    text = " ".join(chance.choices(WORDS, k=chance.randrange(3, 60))) + f" {turn}"
    completion = {"model": MODEL, "prompt": text, "max_tokens": chance.randrange(1, 12)}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": chance.randrange(1, 12)}
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": SCHEMA, "strict": True}}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "completion": ("/v1/completions", completion | {"n": 2}),
        "stream": ("/v1/completions", completion | {"stream": True}),
        "chat": ("/v1/chat/completions", chat | {"logprobs": True, "top_logprobs": 3}),
        "chat stream": ("/v1/chat/completions", chat | {"stream": True, "stop": ["e ", "\n"]}),
        "tools": ("/v1/chat/completions", chat | {"tools": [TOOL], "stream": True}),
        "schema": ("/v1/chat/completions", chat | {"response_format": form, "max_tokens": 30}),
        "response": ("/v1/responses", {"model": MODEL, "input": text, "max_output_tokens": 9, "stream": True}),
        "left": ("/v1/completions", completion | {"stream": True, "max_tokens": 300, "ignore_eos": True}),
        "refused": ("/v1/completions", completion | {"temperature": 9}),
        "metrics": ("/metrics", {}),
    }
    kind = chance.choice(list(kinds))
    path, body = kinds[kind]
    async with http.stream("POST" if body else "GET", path, json=body or None) as response:
        async for _ in response.aiter_bytes():
            if kind == "left":
                break
    return kind, str(response.status_code)


def serve() -> tuple[subprocess.Popen[str], str]:
    """A server that is ready, and its address."""
    paths = os.pathsep.join(str(ROOT / root) for root in ("server", "kernels"))
    process = subprocess.Popen(
        [sys.executable, "-m", "leoserve", "serve", "--port", "0", "--no-log-requests", "--num-kv-blocks", BLOCKS],
        env=os.environ | {"PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
    )
    said, address = [], ""
    for line in process.stderr or ():
        said.append(line)
        if line.split()[:1] == ["address"]:
            address = line.split()[1]
        if "leoserve is ready" in line:
            threading.Thread(target=lambda: [*(process.stderr or ())], daemon=True).start()
            return process, address
    raise RuntimeError("".join(said))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--out", type=Path, help="file for the JSON, beside the standard output")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the server must not stay behind
    process, url = serve()
    try:
        api = psutil.Process(process.pid)
        (engine,) = [child for child in api.children() if "leoserve.engine.process" in child.cmdline()]
        soak = Soak(url, options.requests, options.minutes * 60)
        asyncio.run(soak.run(options.clients, api, engine))
    finally:
        process.terminate()
        process.wait()
    told = json.dumps(soak.told(), indent=2)
    print(told)
    if options.out:
        options.out.write_text(told + "\n")
    wanted = {"refused: 400"} | {name for name in soak.answers if name.endswith(": 200")}
    return 0 if set(soak.answers) <= wanted else 1


if __name__ == "__main__":
    sys.exit(main())
