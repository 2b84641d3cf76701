"""What a grammar costs the answer that follows it, and the answers beside it.

    python bench/constrained.py MODEL

Serves MODEL (a folder) and streams sets of equally long answers, in turn: all free, all constrained, half and half.
The constrained ones follow a schema whose strings take up the whole budget, so every token needs a mask. Prints JSON:
milliseconds between tokens, the median over all rounds, and its ratio to that of free answers among themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from itertools import pairwise
from typing import Any

import httpx

TOKENS = 64
SCHEMA = {
    "type": "object",
    "properties": {"titel": {"type": "string", "minLength": 2000}, "größe": {"type": "number"}},
    "required": ["titel", "größe"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "lang", "schema": SCHEMA, "strict": True}}


async def answer(client: httpx.AsyncClient, model: str, number: int, *, constrained: bool) -> list[float]:
    """Seconds between the tokens of one answer, but for the first, which waits for the prompts of the others."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": [[3 + number] * 32],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "seed": number,
        "stream": True,
        "return_token_ids": True,
    }
    if constrained:
        body["response_format"] = FORM
    seen: list[float] = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                tokens = [
                    token for choice in json.loads(line[6:])["choices"] for token in choice.get("token_ids") or ()
                ]
                seen += [time.perf_counter()] * len(tokens)
    assert len(seen) == TOKENS, len(seen)
    return [after - before for before, after in pairwise(seen[8:])]


async def play(url: str, model: str, rows: int, rounds: int) -> dict[str, list[float]]:
    """Seconds between tokens, by kind of answer and of company."""
    times: dict[str, list[float]] = {
        "free": [],
        "constrained": [],
        "free_beside_constrained": [],
        "constrained_beside_free": [],
    }
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        for turn in range(rounds + 1):
            for kinds in ([False] * rows, [True] * rows, [number % 2 == 0 for number in range(rows)]):
                told = await asyncio.gather(
                    *(answer(client, model, number, constrained=kind) for number, kind in enumerate(kinds))
                )
                for kind, gaps in zip(kinds, told, strict=True):
                    own, other = ("constrained", "free") if kind else ("free", "constrained")
                    if turn:  # the first compiles and warms up
                        times[own if len(set(kinds)) == 1 else f"{own}_beside_{other}"] += gaps
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=20, help="of the three kinds of sets")
    options = parser.parse_args()
    command = [sys.executable, "-m", "leoserve", "serve", options.model, "--port", "0", "--served-model-name", "leo"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            url = next(found[1] for line in server.stderr if (found := re.search(r"base URL\s+(\S+)/v1", line)))
            threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
            results = {}
            for rows in options.rows:
                times = asyncio.run(play(url, "leo", rows, options.rounds))
                median = {kind: statistics.median(gaps) for kind, gaps in times.items() if gaps}
                results[rows] = {
                    kind: {"ms": round(each * 1e3, 2), "ratio": round(each / median["free"], 3)}
                    for kind, each in median.items()
                }
            print(json.dumps(results, indent=1))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
