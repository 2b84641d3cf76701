"""How long one waits beside others: chats while long prompts arrive, a prefix that is known, and a start.

    python bench/waiting.py --model FOLDER --out FILE.json

Starts `leoserve serve` on the checkpoint and measures over HTTP, on a machine that does nothing else:

- gaps between the tokens of chats that run while prompts of 4,000 tokens arrive one after the other: the median, the
  99th percentile, and their ratio;
- the time to the first token of a prompt of 2,000 tokens seen before with another ending, beside that of 32 tokens;
- seconds from the command to a ready server, and the resident memory of its processes then and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]


async def stream(http: httpx.AsyncClient, prompt: list[int], tokens: int) -> list[float]:
    """When each event of a streamed completion came, the request's own time first."""
    times = [time.perf_counter()]
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith('data: {"') and '"finish_reason":null' in line:
                times.append(time.perf_counter())
    return times


def prompt(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(300, 2000) for _ in range(length)]


async def chats_beside_prompts(http: httpx.AsyncClient, draw: random.Random) -> dict[str, Any]:
    """Eight chats of 300 tokens; as long as they run, prompts of 4,000 tokens, each when the one before has begun."""
    chats = [asyncio.create_task(stream(http, prompt(draw, 64), 300)) for _ in range(8)]
    firsts = []
    while not all(chat.done() for chat in chats):
        times = await stream(http, prompt(draw, 4000), 1)
        firsts.append(times[1] - times[0])
    gaps = sorted(
        later - earlier for chat in chats for earlier, later in zip(chat.result()[1:-1], chat.result()[2:], strict=True)
    )
    median, p99 = statistics.median(gaps), gaps[int(0.99 * (len(gaps) - 1))]
    return {
        "median_itl_ms": round(median * 1e3, 2),
        "p99_itl_ms": round(p99 * 1e3, 2),
        "p99_to_median": round(p99 / median, 2),
        "prompts": len(firsts),
        "median_ttft_of_prompts_ms": round(statistics.median(firsts) * 1e3, 1),
    }


async def known_prefix(http: httpx.AsyncClient, draw: random.Random) -> dict[str, Any]:
    """Median times to the first token, in turn: of 32 new tokens, of 2,000 known ones and 32 new, of 2,032 new."""
    known = prompt(draw, 2000)
    await stream(http, known, 1)
    found: dict[str, list[float]] = {"short_ms": [], "known_ms": [], "new_ms": []}
    for _ in range(15):
        for name, tokens in (
            ("short_ms", prompt(draw, 32)),
            ("known_ms", known + prompt(draw, 32)),
            ("new_ms", prompt(draw, 2032)),
        ):
            times = await stream(http, tokens, 1)
            found[name].append((times[1] - times[0]) * 1e3)
    medians = {name: round(statistics.median(values), 2) for name, values in found.items()}
    return medians | {"known_to_short": round(medians["known_ms"] / medians["short_ms"], 2)}


async def measure(port: int) -> dict[str, Any]:
    draw = random.Random(1)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600) as http:
        await stream(http, prompt(draw, 64), 4)
        prefix = await known_prefix(http, draw)
        return {"known prefix": prefix, "chats beside prompts of 4,000 tokens": await chats_beside_prompts(http, draw)}


def resident_mb(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Of the server and its engine."""
    server = psutil.Process(process.pid)
    return {
        part: round(sum(each.memory_info().rss for each in processes) / 1e6, 1)
        for part, processes in (("api", [server]), ("engine", server.children(recursive=True)))
    }


def main() -> int:
    """0 unless the server does not come up."""
    parser = argparse.ArgumentParser(prog="bench/waiting.py", description="How long one waits beside others.")
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint with room for 5,000 tokens")
    parser.add_argument("--port", type=int, default=8017)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    options = parser.parse_args()
    command = [sys.executable, "-m", "leoserve", "serve", str(options.model), "--served-model-name", "m"]
    command += ["--port", str(options.port), "--max-model-len", "5000", "--no-log-requests"]
    roots = os.pathsep.join(str(ROOT / root) for root in ("server", "kernels"))
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": roots}, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not ready(options.port):
            time.sleep(0.02)
        seconds, at_first = time.perf_counter() - begin, resident_mb(process)
        found = {
            "command": f"python bench/waiting.py --model {options.model.name}",
            "ready_seconds": round(seconds, 2),
            "resident_mb_when_ready": at_first,
            **asyncio.run(measure(options.port)),
            "resident_mb_at_the_end": resident_mb(process),
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    sys.exit(main())
