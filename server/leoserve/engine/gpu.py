"""The GPU's runner at the start: what its steps need beside the cache is measured, then the cache takes the rest.

The decode graphs are recorded, and the largest step that can come is computed, over a cache of a single block. Both are
let go, the cache is sized by what they took, and both are done again for good. So a start that succeeds has already
held everything that serving will ever need at once.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from leokernels.triton.state import SamplingState
from leoserve.model.device import DeviceRunner
from leoserve.model.graphs import Recorder
from leoserve.model.llama import Llama
from leoserve.model.step import Admitted, Row, SamplingParams, Step

log = logging.getLogger("leoserve.engine")

MOST_LOGPROBS = 20  # what a request may ask for


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Bounds of what a step can bring, and how it is computed."""

    max_num_seqs: int
    max_tokens: int
    max_model_len: int
    block_size: int
    graphs: bool


class Meter(Protocol):
    """What the process has taken of the device's memory."""

    def taken(self) -> int:
        """Bytes, those included that are kept for later use."""
        ...

    def let_go(self) -> None:
        """Give back what is kept for later use."""
        ...


class CudaMeter:
    """torch's own book-keeping."""

    def taken(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_reserved()

    def let_go(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


RunnerFactory = Callable[[int], DeviceRunner]  # from a number of blocks


def runner_factory(model: Llama, token_ranges: list[tuple[int, int]], load: Load) -> RunnerFactory:
    """Runners of this network. Their sampling state is made once."""
    vocab = model.config.vocab_size
    alive = {token for start, stop in token_ranges for token in range(start, stop)}
    state = SamplingState.empty(load.max_num_seqs, vocab, set(range(vocab)) - alive, model.device)

    def make(num_blocks: int) -> DeviceRunner:
        return DeviceRunner(
            model,
            state,
            num_blocks=num_blocks,
            block_size=load.block_size,
            max_num_seqs=load.max_num_seqs,
            max_model_len=load.max_model_len,
        )

    return make


def measure_reserve(make: RunnerFactory, load: Load, *, meter: Meter, recorder: Callable[[], Recorder]) -> int:
    """Bytes that the largest step and the graphs need beside weights and cache."""
    meter.let_go()
    before = meter.taken()
    runner = make(1)
    if load.graphs:
        runner.record(recorder())  # first: recording gives back what torch keeps for later use
    graphs = meter.taken() - before
    work_in(runner, load)
    both = meter.taken() - before
    del runner
    meter.let_go()
    log.info("decode graphs need %.2f GB, the largest step %.2f GB", graphs / 1e9, (both - graphs) / 1e9)
    return both


def start_runner(make: RunnerFactory, num_blocks: int, load: Load, *, recorder: Callable[[], Recorder]) -> DeviceRunner:
    """The runner that serves: it has recorded its graphs, and computed the largest step beside them and its cache."""
    runner = make(num_blocks)
    if load.graphs:
        graphs = runner.record(recorder())
        log.info("decode graphs: %d sizes up to %d rows", len(graphs.sizes), graphs.sizes[-1])
    work_in(runner, load)
    return runner


def work_in(runner: DeviceRunner, load: Load) -> None:
    """Compute the largest step, a prompt, and decode rows alone: kernels are compiled, memory has been at its peak."""
    runner.launch(largest_step(load)).results()
    prompt = [0] * max(1, min(load.max_tokens, load.max_model_len - 1))
    runner.launch(Step([Row(0, 0, prompt, first_new_block=0, new_blocks=[], samples=True)])).results()
    rows = [
        Row(slot, 0, None, first_new_block=0, new_blocks=[], samples=True, decodes=True)
        for slot in range(load.max_num_seqs)
    ]
    runner.launch(Step(rows)).results()


def largest_step(load: Load) -> Step:
    """As many tokens as a step may have, in as many rows, all of them sampling with all log-probabilities.

    All rows write to block 0: what they compute means nothing.
    """
    params = SamplingParams(
        max_tokens=2, top_p=0.9, logprobs=MOST_LOGPROBS, presence_penalty=0.1, min_tokens=1, logit_bias={0: 1.0}
    )
    left = load.max_tokens
    rows = []
    for slot in range(load.max_num_seqs):
        tokens = [0] * max(1, min(load.max_model_len - 1, left - (load.max_num_seqs - 1 - slot)))
        left -= len(tokens)
        blocks = [0] * -(-load.max_model_len // load.block_size)
        new = Admitted(params, 0, tokens, [])
        decodes = len(tokens) == 1
        rows.append(
            Row(slot, 0, tokens, first_new_block=0, new_blocks=blocks, samples=True, decodes=decodes, admitted=new)
        )
    return Step(sorted(rows, key=lambda row: not row.decodes))
