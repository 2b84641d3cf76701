"""Stage 5: 7B through the server: the two figures that count, as a client sees them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from threading import Thread

from gpustages.checkpoint import random_checkpoint
from gpustages.machine import versions
from gpustages.place import Place
from gpustages.shapes import SEVEN, TINY, Shape
from gpustages.stages import Measurement
from gpustages.timing import summary

PROMPT, ANSWER = 896, 256  # 1024 tokens in the middle of the answer
NAME = "measured"
READY = re.compile(r"leoserve is ready|\"message\": \"ready\"")
ADDRESS = re.compile(r'address\W+http://([^\s":]+):(\d+)')


def measure(place: Place) -> Iterator[Measurement]:
    """Says so, and ends, where the server's dependencies are missing."""
    missing = versions()["missing for the server"]
    if missing != "nothing":
        yield {"name": "7B through HTTP", "note": f"not measured: {missing} not installed; see the engine's figures"}
        return
    shape = TINY if place.tiny else SEVEN
    prompt, answer = (16, 4) if place.tiny else (PROMPT, ANSWER)
    begin = time.perf_counter()
    with random_checkpoint(place, shape) as folder:
        written = time.perf_counter()
        yield {"name": "checkpoint of random weights", "note": f"written in {written - begin:.1f} s to {folder.parent}"}
        with server(place, folder) as (host, port, said):
            yield {"name": "start", "note": f"{time.perf_counter() - written:.1f} s", "said": said[-40:]}
            ask(host, port, 1, prompt, answer)
            for batch in (1, 2) if place.tiny else (1, 8, 64, 1, 64):
                yield figures(place, shape, batch, prompt, answer, ask(host, port, batch, prompt, answer))


@contextmanager
def server(place: Place, folder: Path) -> Iterator[tuple[str, int, list[str]]]:
    """A server of the folder: host, port, and what it says. Raises RuntimeError when it ends before it is ready."""
    command = [sys.executable, "-m", "leoserve", "serve", str(folder), "--port", "0", "--max-num-seqs", "64"]
    command += ["--served-model-name", NAME]
    if place.tiny:
        command += ["--threads", "1", "--num-kv-blocks", "64"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LEOSERVE_")}
    clean |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean)
    said: list[str] = []
    try:
        for line in process.stderr or ():
            said.append(line.rstrip())
            if READY.search(line):
                break
        else:
            raise RuntimeError("the server ended before it was ready:\n" + "\n".join(said[-15:]))
        found = ADDRESS.search("\n".join(said))
        if found is None:
            raise RuntimeError("the server did not say its address:\n" + "\n".join(said[-15:]))
        Thread(target=_drain, args=(process, said), daemon=True).start()
        yield found[1], int(found[2]), said
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print("\n".join(said), file=sys.stderr)


def _drain(process: subprocess.Popen[str], said: list[str]) -> None:
    said.extend(line.rstrip() for line in process.stderr or ())


@dataclass(frozen=True, slots=True)
class Stream:
    """When an answer was asked for, and when its pieces came."""

    asked: float
    pieces: list[float]


def ask(host: str, port: int, batch: int, prompt: int, answer: int) -> list[Stream]:
    """`batch` clients at once, each with a prompt of its own, streamed greedily to the full length."""

    async def all_of_them() -> list[Stream]:
        draw = Random()
        prompts = [[draw.randrange(3, 300) for _ in range(prompt)] for _ in range(batch)]
        return await asyncio.gather(*(_one(host, port, tokens, answer) for tokens in prompts))

    return asyncio.run(all_of_them())


async def _one(host: str, port: int, tokens: list[int], answer: int) -> Stream:
    body = json.dumps(
        {"model": NAME, "prompt": tokens, "max_tokens": answer, "temperature": 0, "ignore_eos": True, "stream": True}
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    asked = time.perf_counter()
    writer.write(head.encode() + body)
    await writer.drain()
    status = await reader.readline()
    pieces = []
    rest = []
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            pieces.append(time.perf_counter())
        rest.append(line)
    writer.close()
    if b" 200 " not in status or not pieces:
        raise RuntimeError(f"the server answered {status!r}: {b''.join(rest[-3:])!r}")
    return Stream(asked, pieces)


def figures(place: Place, shape: Shape, batch: int, prompt: int, answer: int, streams: list[Stream]) -> Measurement:
    """Tokens a second while all streams run; each stream's time a token; the wait for the first."""
    begin, end = max(stream.pieces[0] for stream in streams), min(stream.pieces[-1] for stream in streams)
    tokens = sum(
        sum(begin < when <= end for when in stream.pieces) * (answer - 1) / max(1, len(stream.pieces) - 1)
        for stream in streams
    )
    each = [(stream.pieces[-1] - stream.pieces[0]) * 1e3 / (answer - 1) for stream in streams]
    first = summary([(stream.pieces[0] - stream.asked) * 1e3 for stream in streams], "http")
    weights = shape.product_weights * place.dtype.itemsize
    moved = weights + batch * (prompt + answer // 2) * shape.kv_bytes(place.dtype.itemsize)
    return {
        "name": f"{shape.name} through HTTP, B{batch} (first token after {first.ms:.0f} ms)",
        "tokens_s": tokens / (end - begin) if end > begin else 0.0,
        "ceiling_tokens_s": batch * place.bytes_a_second / moved,
        "first_ms": first.ms,
        **summary(each, "http").entry(),
    }
