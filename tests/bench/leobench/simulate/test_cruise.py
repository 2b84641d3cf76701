"""The simulator's scheduler leaves out what merely generates: every step, time and block is that of the server's own.

The reference is the server's loop and scheduler, step by step, around a runner that takes known time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leobench.simulate.replica import Replica, Setup
from leobench.simulate.work import Cost, Work
from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.loop import EngineLoop
from leoserve.engine.request import Request, SamplingParams, StepOutputs
from leoserve.engine.scheduler import Scheduler, SchedulerLimits
from leoserve.model.step import RowResult, Step


class Known:
    """A cost that depends on everything in a step, so that no difference stays unseen. Keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Work] = []

    def cost(self, work: Work) -> Cost:
        self.asked.append(work)
        pairs = sum(count * (start + count) for count, start in work.prefills)
        device = 1e-3 + work.decode_rows * 1e-5 + work.decode_keys * 1e-7 + pairs * 1e-7 + work.sampled * 1e-6
        return Cost(plan=2e-4, launch=1e-4 * len(work.prefills), device=device)


@dataclass
class Arrival:
    when: float
    prompt: list[int]
    answer: list[int]


class Plain:
    """The server's loop and scheduler, with nothing left out; the runner knows the time."""

    def __init__(self, setup: Setup, arrivals: list[Arrival]) -> None:
        self.now = 0.0
        self.free = 0.0
        self.known = Known()
        self.window = setup.window
        self.arrivals = arrivals
        self.times: dict[int, list[float]] = {number: [] for number in range(len(arrivals))}
        self.cached: dict[int, int] = {}
        self.slots: dict[int, tuple[int, int]] = {}
        self.queue: deque[Step] = deque()
        admission = Admission(capacity=setup.limits.max_model_len, max_waiting=10_000, max_waiting_tokens=10**9)
        self.scheduler = Scheduler(setup.limits, BlockPool(setup.num_blocks), admission, clock=lambda: self.now)
        self.loop = EngineLoop(self.scheduler, self, self._take, ahead=setup.ahead, clock=lambda: self.now)

    def run(self) -> None:
        waiting = deque(enumerate(self.arrivals))
        while waiting or self.scheduler.has_work:
            if not self.scheduler.has_work:
                self.now = max(self.now, waiting[0][1].when)
            while waiting and waiting[0][1].when <= self.now:
                number, arrival = waiting.popleft()
                params = SamplingParams(max_tokens=len(arrival.answer), seed=number)
                request = Request(request_id=str(number), prompt=arrival.prompt, params=params, arrival=arrival.when)
                assert self.scheduler.admission.admit(request) is None
                self.loop.submit(request)
            self.loop.receive()
            assert self.loop.step()

    def launch(self, step: Step) -> Late:
        decodes = [row for row in step.rows if row.decodes]
        seen = [row.start + 1 for row in decodes]
        work = Work(
            decode_rows=len(decodes),
            decode_keys=sum(seen if self.window is None else (min(keys, self.window) for keys in seen)),
            prefills=tuple((row.count, row.start) for row in step.rows if not row.decodes),
            sampled=sum(row.samples for row in step.rows),
        )
        cost = self.known.cost(work)
        for row in step.rows:
            if row.admitted:
                self.slots[row.slot] = row.admitted.params.seed, len(row.admitted.prompt)
        self.now += cost.plan
        begin = max(self.now, self.free)
        self.now += cost.launch
        self.free = max(begin + cost.device, self.now)
        results = []
        for row in step.rows:
            number, prompt = self.slots[row.slot]
            answer = self.arrivals[number].answer
            results.append(RowResult(token=answer[row.start + row.count - prompt] if row.samples else None))
        return Late(self, self.free, results)

    def _take(self, message: StepOutputs) -> None:
        for output in message.outputs:
            self.times[int(output.request_id)].append(self.now)
            self.cached[int(output.request_id)] = output.num_cached_tokens


@dataclass
class Late:
    """Results that are there when the device is done."""

    plain: Plain
    done: float
    rows: list[RowResult]

    def ended(self, *, wait: bool) -> Sequence[int]:
        return ()

    def results(self) -> list[RowResult]:
        self.plain.now = max(self.plain.now, self.done)
        return self.rows


def simulate(
    setup: Setup, arrivals: list[Arrival], *, foresight: bool
) -> tuple[Replica, Known, list[list[float]], list[int]]:
    """`foresight`: whether a replica is told when the next request comes, and so looks no further."""
    known = Known()
    replica = Replica(known, setup)
    waiting = deque(enumerate(arrivals))
    answers = []
    while waiting or replica.busy:
        while waiting and (not replica.busy or waiting[0][1].when <= replica.ready):
            number, arrival = waiting.popleft()
            answers.append(replica.submit(number, arrival.prompt, arrival.answer, arrival.when))
        replica.advance(waiting[0][1].when if waiting and foresight else math.inf)
        assert (replica.scheduler.num_running + len(replica.scheduler.waiting) > 0) <= replica.busy
    return replica, known, [answer.token_times for answer in answers], [answer.cached for answer in answers]


def draw_arrivals(seed: int, *, number: int, rate: float, longest: int) -> list[Arrival]:
    """Prompts that share beginnings with each other and with earlier answers, and come in bursts."""
    draw = Random(seed)
    when = 0.0
    arrivals: list[Arrival] = []
    for index in range(number):
        when += draw.choice([0.0, draw.expovariate(rate)])
        own = [1000 * index + place for place in range(draw.randint(1, longest // 2))]
        start: list[int] = []
        if arrivals and draw.random() < 0.5:
            earlier = draw.choice(arrivals)
            start = (earlier.prompt + earlier.answer)[: draw.randint(0, longest // 3)]
        prompt = start + own
        answer = [10**6 + 1000 * index + place for place in range(draw.randint(1, longest - len(prompt)))]
        arrivals.append(Arrival(when, prompt, answer))
    return arrivals


def compare(setup: Setup, arrivals: list[Arrival]) -> Replica:
    """All that can be told apart, down to the order of the free blocks."""
    plain = Plain(setup, arrivals)
    plain.run()
    *_, times, cached = simulate(setup, arrivals, foresight=False)
    assert times == [plain.times[number] for number in range(len(arrivals))]
    assert cached == [plain.cached[number] for number in range(len(arrivals))]
    replica, known, times, cached = simulate(setup, arrivals, foresight=True)
    assert known.asked == plain.known.asked
    assert times == [plain.times[number] for number in range(len(arrivals))]
    assert cached == [plain.cached[number] for number in range(len(arrivals))]
    for count in ("steps", "preemptions", "prompt_tokens", "cached_tokens", "generation_tokens", "prefix_hits"):
        assert getattr(replica.scheduler.stats, count) == getattr(plain.scheduler.stats, count), count
    assert list(replica.scheduler.pool._free) == list(plain.scheduler.pool._free)
    assert replica.scheduler.pool._hash_of == plain.scheduler.pool._hash_of
    replica.scheduler.check()
    return replica


def setup_of(
    *, blocks: int, size: int, ahead: int, sequences: int = 6, budget: int = 24, deterministic: bool = False,
    window: int | None = None, prefix_caching: bool = True, longest: int = 96, stretch: float | None = None,
) -> Setup:  # fmt: skip
    limits = SchedulerLimits(
        max_sequences=sequences,
        max_tokens_per_step=budget,
        max_model_len=longest,
        block_size=size,
        prefix_caching=prefix_caching,
        deterministic=deterministic,
        prefill_stretch=stretch,
    )
    return Setup(limits=limits, num_blocks=blocks, ahead=ahead, window=window)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([4, 8, 16]),
    tokens=st.sampled_from([96, 128, 256, 1024]),
    ahead=st.sampled_from([0, 1]),
    rate=st.sampled_from([20.0, 200.0, 2000.0]),
    deterministic=st.booleans(),
    window=st.sampled_from([None, 10, 32]),
    prefix_caching=st.booleans(),
    stretch=st.sampled_from([None, 1.5, 3.0]),
)
def test_every_step_and_block_is_as_without_leaving_anything_out(
    seed: int, size: int, tokens: int, ahead: int, rate: float, deterministic: bool, window: int | None,
    prefix_caching: bool, stretch: float | None,
) -> None:  # fmt: skip
    setup = setup_of(
        blocks=tokens // size,
        size=size,
        ahead=ahead,
        deterministic=deterministic,
        window=window,
        prefix_caching=prefix_caching,
        stretch=stretch,
    )
    compare(setup, draw_arrivals(seed, number=16, rate=rate, longest=96))


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_cache_that_is_too_small_preempts_the_same_sequences(ahead: int) -> None:
    setup = setup_of(blocks=14, size=8, ahead=ahead)
    replica = compare(setup, draw_arrivals(1, number=40, rate=2000.0, longest=96))
    assert replica.scheduler.stats.preemptions > 10


@pytest.mark.parametrize("ahead", [0, 1])
def test_most_rows_are_left_out(ahead: int) -> None:
    """Else the simulator would be right and slow."""
    setup = setup_of(blocks=400, size=32, ahead=ahead, sequences=16, longest=600)
    arrivals = [Arrival(0.0, [1000 * index + 1], list(range(500))) for index in range(16)]
    known = Known()
    replica = Replica(known, setup)
    for number, arrival in enumerate(arrivals):
        replica.submit(number, arrival.prompt, arrival.answer, 0.0)
    seen = 0
    while replica.busy:
        replica.advance()
        seen += len(replica.scheduler.running)
    assert replica.scheduler.stats.generation_tokens == 16 * 500
    assert seen < 16 * 500 / 100
