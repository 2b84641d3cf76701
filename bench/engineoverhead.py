"""What a step costs beside its forward pass: the real loop, scheduler, runner and socket around a network that is none.

    python bench/engineoverhead.py [--vocab 2560] [--out bench/results/engineoverhead.json]

Set PYTHONPATH=server:kernels where leoserve is not installed.

So many sequences decode, all greedy, all drawn at temperature 1, of all ids or with top_p 0.9, or all sampled with
temperature 0.8 and top_p 0.95, and every step is planned, its batch built, its tokens chosen from logits that lie
ready, its outputs made, encoded and sent to another process. What is counted is CPU time, for that is what a machine
with two cores has to share and what another program's load falsifies least: of the thread that steps for each part, of
the whole process, the socket's thread included, for the total. It is the median over rounds, in microseconds a step,
and a straight line `fixed + each * sequences` fitted to it.

The vocabulary counts, since choosing the largest of V logits reads them all: 4 V bytes a sequence.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from taker import taker
from torch import Tensor

from leokernels import AttentionMetadata, KVCache
from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.loop import EngineLoop, LaunchedStep, StepRunner
from leoserve.engine.process import Line
from leoserve.engine.request import Request, SamplingParams
from leoserve.engine.scheduler import Scheduler, SchedulerLimits
from leoserve.model.llama import Llama
from leoserve.model.runner import Runner
from leoserve.model.sampler import Sampler
from leoserve.model.step import Step

SEQUENCES = [1, 16, 64, 256]
ROUNDS, STEPS = 7, 30
PROMPT, LONGEST, BLOCK = 32, 2048, 16
HIDDEN = 8
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "sampled": {"temperature": 0.8, "top_p": 0.95},
}
PARTS = ("receive", "plan", "batch", "forward", "sample", "complete", "send")


class NoNetwork:
    """What the runner asks of a network, at no cost: tensors that lie ready."""

    def __init__(self, vocab: int, sequences: int, tokens: int) -> None:
        self.device = torch.device("cpu")
        self._hidden = torch.zeros(tokens, HIDDEN)
        # times 6, about a model's: top_p keeps some tens of ids
        self._logits = torch.randn(sequences, vocab, generator=torch.Generator().manual_seed(1)) * 6

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        kv: Sequence[KVCache],
        metadata: AttentionMetadata,
        wanted: Tensor | None = None,
    ) -> Tensor:
        return self._hidden[: len(tokens if wanted is None else wanted)]

    def logits(self, hidden: Tensor) -> Tensor:
        return self._logits[: len(hidden)]

    def new_cache(self, num_blocks: int, block_size: int) -> list[KVCache]:
        return []


class Clock:
    """CPU microseconds of this thread by part. A part that calls another does not count the other's."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            outer, self._inner = self._inner, 0.0
            begin = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                seconds = time.thread_time() - begin
                self.spent[part] += 1e6 * (seconds - self._inner)
                self._inner = outer + seconds

        return call


class TimedRunner:
    """A runner whose launches are counted as `batch`, but for what of them is timed elsewhere."""

    def __init__(self, runner: StepRunner, clock: Clock) -> None:
        self._launch = clock.timed("batch", runner.launch)

    def launch(self, step: Step) -> LaunchedStep:
        return cast(LaunchedStep, self._launch(step))


def engine(line: Line, sequences: int, vocab: int, clock: Clock | None) -> EngineLoop:
    """A loop around no network; with a clock, its parts are timed."""
    blocks = sequences * (LONGEST // BLOCK)
    limits = SchedulerLimits(
        max_sequences=sequences,
        max_tokens_per_step=max(512, sequences),
        max_model_len=LONGEST,
        block_size=BLOCK,
        deterministic=True,
    )
    network = NoNetwork(vocab, sequences, limits.max_tokens_per_step)
    sampler = Sampler(max_slots=sequences, vocab_size=vocab, token_ranges=[(0, vocab - 8)], device="cpu")
    admission = Admission(capacity=LONGEST, max_waiting=sequences, max_waiting_tokens=sequences * LONGEST)
    scheduler = Scheduler(limits, BlockPool(blocks), admission)
    send = line.send
    if clock is not None:
        for target, method, part in (
            (network, "forward", "forward"),
            (network, "logits", "forward"),
            (sampler, "sample", "sample"),
            (scheduler, "plan", "plan"),
            (scheduler, "complete", "complete"),
        ):
            setattr(target, method, clock.timed(part, getattr(target, method)))
        send = clock.timed("send", send)
    runner: StepRunner = Runner(
        cast(Llama, network),
        sampler,
        num_blocks=blocks,
        block_size=BLOCK,
        max_num_seqs=sequences,
        max_model_len=LONGEST,
    )
    loop = EngineLoop(scheduler, runner if clock is None else TimedRunner(runner, clock), send)
    if clock is not None:
        setattr(loop, "receive", clock.timed("receive", loop.receive))  # noqa: B010 - mypy: a method
    return loop


def measure(line: Line, sequences: int, vocab: int, kind: str, *, parts: bool) -> dict[str, float]:
    """CPU microseconds a step: `total`, or each part."""
    clock = Clock() if parts else None
    loop = engine(line, sequences, vocab, clock)
    for number in range(sequences):
        params = SamplingParams(max_tokens=LONGEST - PROMPT, seed=number, **KINDS[kind])
        prompt = [3 + number] * PROMPT
        request = Request(request_id=f"cmpl-{number:032x}", prompt=prompt, params=params, arrival=float(number))
        if loop.scheduler.admission.admit(request) is not None:
            raise RuntimeError("the request was refused")
        loop.submit(request)
    while loop.scheduler.stats.generation_tokens < 2 * sequences:
        loop.receive()
        if not loop.step():
            raise RuntimeError("the requests ended before they were measured")
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        if clock is not None:
            clock.spent.clear()
        begin = time.process_time()
        for _ in range(STEPS):
            loop.receive()
            loop.step()
        total = {"total": 1e6 * (time.process_time() - begin)}
        rounds.append(total if clock is None else {part: clock.spent[part] for part in PARTS})
    if len(loop.scheduler.running) != sequences:
        raise RuntimeError("a sequence ended while it was measured")
    return {part: statistics.median(spent[part] for spent in rounds) / STEPS for part in rounds[0]}


def line_through(costs: dict[int, float]) -> dict[str, float]:
    """The least squares' `fixed + each * sequences`."""
    each, fixed = np.polyfit(list(costs), list(costs.values()), 1)
    return {"fixed": round(float(fixed), 1), "each": round(float(each), 3)}


def report(line: Line, vocab: int, numbers: list[int]) -> dict[str, Any]:
    """Everything, by kind, part and number of sequences."""
    costs: dict[str, dict[str, dict[int, float]]] = {kind: defaultdict(dict) for kind in KINDS}
    for sequences in numbers:  # the kinds in turns: what the machine does beside this changes from minute to minute
        for kind in KINDS:
            spent = measure(line, sequences, vocab, kind, parts=False) | measure(
                line, sequences, vocab, kind, parts=True
            )
            for part, value in spent.items():
                costs[kind][part][sequences] = round(value, 1)
            print(f"{kind:8} {sequences:4}  " + "  ".join(f"{part} {value:.0f}" for part, value in spent.items()))
    found: dict[str, Any] = {}
    for kind, parts in costs.items():
        found[kind] = {part: {"us": values, "line": line_through(values)} for part, values in parts.items()}
        print(f"{kind:8} total = {found[kind]['total']['line']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[2560, 32128], help="ids: the bundled model's, LeoLM's")
    parser.add_argument("--sequences", type=int, nargs="+", default=SEQUENCES, help="that decode; two numbers or more")
    parser.add_argument("--out", type=Path, help="write JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "unit": "CPU microseconds a step",
        "vocab": {},
    }
    with taker() as line:
        for vocab in arguments.vocab:
            print(f"vocabulary of {vocab}")
            results["vocab"][vocab] = report(line, vocab, arguments.sequences)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
