"""What a GPU's steps need beside weights and cache: it is measured before the cache is sized.

The decode graphs are recorded, and the largest step that can come is computed, over a cache of a single block. Both are
let go, the cache is sized by what they took, and both are done again for good. So a start that succeeds has already
held everything that serving will ever need at once.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from leoserve.model.step import Admitted, Result, Row, SamplingParams, Step

log = logging.getLogger("leoserve.engine")

MOST_LOGPROBS = 20  # what a request may ask for


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Bounds of what a step can bring, and how it is computed."""

    max_num_seqs: int
    max_tokens: int
    max_model_len: int
    block_size: int


class Meter(Protocol):
    """What the process has taken of the device's memory."""

    def taken(self) -> int:
        """Bytes, those included that are kept for later use."""
        ...

    def let_go(self) -> None:
        """Give back what is kept for later use."""
        ...


class CudaMeter:
    """The driver's book-keeping: what torch has allocated, and also loaded kernels and the graphs themselves."""

    def taken(self) -> int:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free

    def let_go(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


class Launched(Protocol):
    def results(self) -> Sequence[Result]: ...


class MeasuredRunner(Protocol):
    """A runner as far as it is measured."""

    def launch(self, step: Step) -> Launched: ...


R = TypeVar("R", bound=MeasuredRunner)


@dataclass(frozen=True, slots=True)
class RunnerFactory(Generic[R]):
    """How to make a runner with a cache of so many blocks, and how it records its graphs, if it has any."""

    make: Callable[[int], R]
    record: Callable[[R], None] | None


def measure_reserve(factory: RunnerFactory[R], load: Load, meter: Meter) -> int:
    """Bytes that the largest step and the graphs need beside weights and cache.

    Without what stays when both are let go, such as loaded kernels: that is gone from what is available.
    """
    meter.let_go()
    before = meter.taken()
    runner = factory.make(1)
    if factory.record is not None:
        factory.record(runner)  # first: recording gives back what torch keeps for later use
    graphs = meter.taken() - before
    work_in(runner, load)
    peak = meter.taken()
    log.info("decode graphs need %.2f GB, the largest step %.2f GB", graphs / 1e9, (peak - before - graphs) / 1e9)
    del runner
    meter.let_go()
    return max(0, peak - meter.taken())


def start_runner(factory: RunnerFactory[R], num_blocks: int, load: Load) -> R:
    """The runner that serves: it has recorded its graphs, and computed the largest step beside them and its cache."""
    runner = factory.make(num_blocks)
    if factory.record is not None:
        factory.record(runner)
    work_in(runner, load)
    return runner


def work_in(runner: MeasuredRunner, load: Load) -> None:
    """Compute the largest step, a prompt that is scored, decode rows alone, one and many, a copied block: kernels are
    compiled, those of few rows among them, and memory has been at its peak."""
    runner.launch(largest_step(load)).results()
    runner.launch(scored_prompt(load)).results()
    rows = [
        Row(slot, 0, None, first_new_block=0, new_blocks=[], samples=True, decodes=True)
        for slot in range(load.max_num_seqs)
    ]
    runner.launch(Step(rows, copies=[(0, 0)])).results()
    runner.launch(Step(rows[:1])).results()


def scored_prompt(load: Load) -> Step:
    """The longest prompt of one step, all of whose log-probabilities are wanted."""
    prompt = [0] * max(1, min(load.max_tokens, load.max_model_len - 1))
    blocks = [0] * -(-load.max_model_len // load.block_size)
    params = SamplingParams(max_tokens=2, prompt_logprobs=MOST_LOGPROBS)
    new = Admitted(params, 0, prompt, [])
    row = Row(0, 0, prompt, first_new_block=0, new_blocks=blocks, samples=True, admitted=new, targets=prompt[1:])
    return Step([row])


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
