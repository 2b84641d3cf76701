"""Chats that generate while long prompts arrive, in virtual time: how long each has to wait for its next token."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.loop import EngineLoop
from leoserve.engine.pacing import FLOOR, Pace
from leoserve.engine.request import Refused, Request, SamplingParams, StepOutputs
from leoserve.engine.scheduler import Scheduler, SchedulerLimits
from leoserve.model.step import Computed, Row, RowResult, Step

LONG, BUDGET, LENGTH = 4096, 512, 8192
CHATS, CHAT_TOKENS = 8, 600


@dataclass
class Machine:
    """A runner that computes nothing and takes virtual seconds for it."""

    fixed: float  # of every step
    row: float  # of each row that decodes
    token: float  # of each prompt token
    deep: float = 0.0  # more for each, per 1000 tokens before it
    noise: float = 0.0  # share by which a step may take longer
    now: float = 0.0
    steps: list[tuple[int, int]] = field(default_factory=list)  # rows that decode, prompt tokens
    draw: random.Random = field(default_factory=lambda: random.Random(1))

    def launch(self, step: Step) -> Computed:
        prompts = [row for row in step.rows if not row.decodes]
        decoding = len(step.rows) - len(prompts)
        seconds = self.fixed + self.row * decoding + sum(self._seconds(row) for row in prompts)
        self.now += seconds * (1 + self.noise * self.draw.random())
        self.steps.append((decoding, sum(row.count for row in prompts)))
        return Computed([RowResult(7 if row.samples else None) for row in step.rows])

    def _seconds(self, row: Row) -> float:
        return row.count * (self.token + self.deep * row.start / 1000)


class Server:
    """The real loop on such a machine, and when it sent what."""

    def __init__(self, machine: Machine, stretch: float | None) -> None:
        limits = SchedulerLimits(
            max_sequences=64,
            max_tokens_per_step=BUDGET,
            max_model_len=LENGTH,
            block_size=16,
            prefill_stretch=stretch,
        )
        admission = Admission(capacity=LENGTH, max_waiting=1000, max_waiting_tokens=10**6)
        self.machine = machine
        self.sent: defaultdict[str, list[float]] = defaultdict(list)
        self.tokens = count()
        scheduler = Scheduler(limits, BlockPool(4096), admission, clock=lambda: machine.now)
        self.loop = EngineLoop(scheduler, machine, self._take, clock=lambda: machine.now)

    def submit(self, name: str, prompt: int, tokens: int) -> None:
        params = SamplingParams(max_tokens=tokens)
        own = [next(self.tokens)] * prompt  # shared with no other prompt
        request = Request(request_id=name, prompt=own, params=params, arrival=self.machine.now)
        assert self.loop.scheduler.admission.admit(request) is None
        self.loop.submit(request)
        self.loop.receive()

    def _take(self, message: StepOutputs | Refused) -> None:
        assert isinstance(message, StepOutputs)
        for output in message.outputs:
            self.sent[output.request_id] += [self.machine.now] * len(output.token_ids)


def chats_beside_long_prompts(machine: Machine, stretch: float | None, *, prompts: int = 4) -> Server:
    """Chats run; then long prompts come, some together."""
    server = Server(machine, stretch)
    for number in range(CHATS):
        server.submit(f"chat{number}", 40 + number, CHAT_TOKENS)
    for _ in range(20):
        server.loop.step()
    for number in range(prompts):
        server.submit(f"long{number}", LONG, 4)
        for _ in range(50 * (number % 2)):
            server.loop.step()
    while server.loop.step():
        pass
    server.loop.scheduler.check()
    return server


def gaps(server: Server) -> list[float]:
    """Seconds between a chat's tokens, of all chats."""
    times = [server.sent[f"chat{number}"] for number in range(CHATS)]
    assert all(len(each) == CHAT_TOKENS for each in times)
    return [after - before for each in times for before, after in pairwise(each)]


# The demo model and one of a billion parameters on two cores, and one whose prompts cost next to nothing.
MACHINES = {
    "tiny": Machine(fixed=0.0015, row=0.0001, token=0.00006, deep=0.00001, noise=0.1),
    "medium": Machine(fixed=0.11, row=0.003, token=0.004, deep=0.0004, noise=0.1),
    "quick": Machine(fixed=0.02, row=0.0005, token=0.00002, noise=0.1),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_slowest_gaps_of_chats_are_within_three_medians_while_long_prompts_arrive(name: str) -> None:
    machine = MACHINES[name]
    found = gaps(chats_beside_long_prompts(Machine(machine.fixed, machine.row, machine.token, machine.deep, 0.1), 2.5))
    assert statistics.quantiles(found, n=100)[98] <= 3 * statistics.median(found)


def test_without_a_bound_they_are_not() -> None:
    machine = Machine(fixed=0.11, row=0.003, token=0.004)
    found = gaps(chats_beside_long_prompts(machine, None))
    assert statistics.quantiles(found, n=100)[98] > 10 * statistics.median(found)


@settings(max_examples=25, deadline=None)
@given(
    fixed=st.floats(1e-4, 0.3),
    row=st.floats(0, 0.005),
    token=st.floats(1e-6, 0.02),
    deep=st.floats(0, 0.5),
    stretch=st.floats(1.0, 8.0),
)
def test_a_step_takes_as_much_longer_as_it_may_and_every_prompt_ends(
    fixed: float, row: float, token: float, deep: float, stretch: float
) -> None:
    machine = Machine(fixed, row, token, deep * token)
    server = chats_beside_long_prompts(machine, stretch)
    assert all(len(server.sent[f"long{number}"]) == 4 for number in range(4))
    alone = fixed + row * CHATS
    # up to five chunks pass before a token's growing cost is in the median, and the first prompt is measured by the
    # chats' own
    dearest = token * (1 + deep * LONG / 1000)
    steps = [tokens for rows, tokens in machine.steps[25:] if rows >= CHATS and tokens]
    assert steps
    assert max(steps) <= max(FLOOR, (stretch - 1) * (alone + 4 * row) / token + 1)
    median_step = statistics.median(fixed + row * CHATS + tokens * token for tokens in steps)
    assert median_step <= max(stretch * (alone + 4 * row), alone + FLOOR * dearest) * 1.01


def test_a_prompt_that_one_step_holds_is_not_cut() -> None:
    machine = Machine(fixed=0.01, row=0.001, token=0.01)
    server = Server(machine, 2.0)
    server.submit("chat0", 10, 400)
    for _ in range(10):
        server.loop.step()
    server.submit("long", LONG, 1)
    for _ in range(5):
        server.loop.step()
    server.submit("short", 400, 1)
    server.loop.step()
    assert 400 < machine.steps[-1][1] <= 400 + FLOOR
    assert len(server.sent["short"]) == 1


def test_a_long_prompt_alone_takes_whole_steps() -> None:
    machine = Machine(fixed=0.01, row=0.001, token=0.01)
    server = Server(machine, 1.0)
    server.submit("long", LONG, 1)
    while server.loop.step():
        pass
    assert machine.steps == [(0, BUDGET)] * (LONG // BUDGET)


def test_one_step_in_sixteen_measures_those_who_generate() -> None:
    pace = Pace(3.0)
    decode = Row(0, 9, None, 0, (), samples=True, decodes=True)
    prompt = Row(1, 0, [5] * 100, 0, (), samples=False)
    pace.note(Step([decode]), 1.0)
    allowed = []
    for _ in range(32):
        tokens = pace.tokens()
        allowed.append(tokens)
        pace.note(Step([decode, prompt] if tokens else [decode]), 2.0 if tokens else 1.0)
    assert [number for number, tokens in enumerate(allowed) if not tokens] == [15, 31]
    assert set(allowed) == {0, FLOOR, 200}  # 0.01 seconds a token, and two of a second's steps are to spare
