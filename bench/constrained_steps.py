"""What rows that follow a grammar cost the rows of their step that do not: the engine's own steps, with nothing beside.

    python bench/constrained_steps.py MODEL

Runs the engine of MODEL (a folder) on this machine's processor and answers sets of prompts at once, in turn: all free,
half of them constrained as in bench/constrained.py, all constrained. Every row of a step waits for the whole of it, so
what is compared are steps, from plan to output, their results sent to another process. Prints JSON: milliseconds of a
step, the median over all rounds, and its ratio to that of free rows among themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the server's engine has it; torch looks when it is imported
for folder in ("server", "kernels", "bench"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

from constrained import SCHEMA, TOKENS  # noqa: E402
from taker import taker  # noqa: E402

from leoserve.engine.config import EngineConfig  # noqa: E402
from leoserve.engine.loop import Constrained, EngineLoop  # noqa: E402
from leoserve.engine.request import Refused, Request, SamplingParams, StepOutputs  # noqa: E402
from leoserve.engine.start import start_engine  # noqa: E402
from leoserve.model.grammar import CompiledGrammar, Grammars  # noqa: E402
from leoserve.model.nativeparsers import parsers_for  # noqa: E402
from leoserve.model.step import Grammar  # noqa: E402
from leoserve.text.tokenizer import Tokenizer  # noqa: E402

KINDS = ("free", "half", "constrained")
PROMPT = 32  # tokens
APART = 8  # of a set's steps at its beginning, which compute prompts, and 4 at its end


class Steps:
    """Sets of answers, step by step."""

    def __init__(self, loop: EngineLoop, grammar: CompiledGrammar) -> None:
        self._loop = loop
        self._grammar = grammar
        self._serial = 0

    def play(self, constrained: list[bool]) -> list[float]:
        """Seconds of each step of a set, one answer for each of these."""
        for number, kind in enumerate(constrained):
            self._serial += 1
            params = SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=self._serial)
            prompt = [3 + number] * PROMPT
            request = Request(request_id=str(self._serial), prompt=prompt, params=params, arrival=float(self._serial))
            refused = self._loop.scheduler.admission.admit(request)
            if refused is not None:
                raise SystemExit(f"constrained_steps: {refused.message}")
            self._loop.submit(Constrained(request, self._grammar) if kind else request)
        self._loop.receive()
        found = []
        while True:
            begin = time.perf_counter()
            if not self._loop.step():
                return found[APART:-4]
            found.append(time.perf_counter() - begin)


def measure(steps: Steps, rows: int, rounds: int) -> dict[str, dict[str, float]]:
    """By kind of set: milliseconds of a step, and the ratio to those of free rows alone."""
    sets = {"free": [False] * rows, "half": [row % 2 == 0 for row in range(rows)], "constrained": [True] * rows}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(rounds + 1):
        for kind in KINDS:
            found = steps.play(sets[kind])
            times[kind] += found if turn else []  # the first warms up
    median = {kind: statistics.median(found) for kind, found in times.items()}
    return {
        kind: {"ms": round(each * 1e3, 3), "ratio": round(each / median["free"], 3)} for kind, each in median.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--rounds", type=int, default=20, help="of the three kinds of sets")
    options = parser.parse_args()
    table = Tokenizer.load(Path(options.model)).token_table()
    ranges = [(0, len(table.pieces))]
    config = EngineConfig(model=options.model, device="cpu", token_ranges=ranges, progress=False)
    with taker() as line:

        def take(message: StepOutputs | Refused) -> None:
            line.send(message)

        loop, ready = start_engine(config, take)
        form = Grammar("json_schema", json.dumps(SCHEMA), "response_format")
        steps = Steps(loop, Grammars(table, parsers_for(ready.device)).compile(form))
        print(json.dumps({rows: measure(steps, rows, options.rounds) for rows in options.rows}, indent=1))


if __name__ == "__main__":
    main()
