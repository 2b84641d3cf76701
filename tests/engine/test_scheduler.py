"""Scheduler and cache through long random histories: what must hold after every step, and how it all ends."""

import itertools
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from leoserve.engine.admission import Admission
from leoserve.engine.cache import BlockPool
from leoserve.engine.loop import EngineLoop
from leoserve.engine.request import Abort, Refused, Request, SamplingParams, StepOutputs
from leoserve.engine.scheduler import Scheduler, SchedulerLimits
from tests.engine.paged_oracle import LateOracle, PagedOracle, next_token


def make_scheduler(
    *,
    num_blocks=8,
    block_size=4,
    max_sequences=4,
    budget=8,
    max_model_len=32,
    prefix_caching=True,
    max_waiting=1000,
    max_waiting_tokens=10**6,
):
    admission = Admission(
        capacity=min(max_model_len, num_blocks * block_size),
        max_waiting=max_waiting,
        max_waiting_tokens=max_waiting_tokens,
    )
    limits = SchedulerLimits(
        max_sequences=max_sequences,
        max_tokens_per_step=budget,
        max_model_len=max_model_len,
        block_size=block_size,
        prefix_caching=prefix_caching,
    )
    ticks = itertools.count(1)
    return Scheduler(limits, BlockPool(num_blocks), admission, clock=lambda: float(next(ticks)))


class Driver:
    """The real loop over a scheduler and the oracle, collecting what each choice was sent."""

    def __init__(self, scheduler, *, ahead=0):
        self.scheduler = scheduler
        limits = scheduler.limits
        self.oracle = (LateOracle if ahead else PagedOracle)(
            num_blocks=scheduler.pool.num_blocks, block_size=limits.block_size, budget=limits.max_tokens_per_step
        )
        self.sent: dict[tuple[str, int], list[int]] = {}
        self.reasons: dict[tuple[str, int], str] = {}
        self.cached: dict[tuple[str, int], int] = {}
        self.refusals: list[Refused] = []
        self.loop = EngineLoop(scheduler, self.oracle, self._receive, ahead=ahead)
        self._arrivals = itertools.count(1)

    def submit(self, name, prompt, *, max_tokens=5, n=1, priority=0, stop=(), salt=""):
        params = SamplingParams(max_tokens=max_tokens, n=n, stop_token_ids=tuple(stop))
        request = Request(
            request_id=name,
            prompt=list(prompt),
            params=params,
            arrival=float(next(self._arrivals)),
            priority=priority,
            salt=salt,
        )
        refused = self.scheduler.admission.admit(request)
        if refused is not None:
            self.refusals.append(refused)
            return None
        self.loop.submit(request)
        self.loop.receive()
        return request

    def abort(self, name, index=None):
        self.loop.submit(Abort(request_id=name, index=index))
        self.loop.receive()

    def run(self, limit=10_000):
        for _ in range(limit):
            if not self.loop.step():
                return
            self.scheduler.check()
        raise AssertionError("the work does not end")

    def _receive(self, message):
        assert isinstance(message, StepOutputs)
        assert not self.oracle.violations
        for output in message.outputs:
            key = (output.request_id, output.index)
            assert key not in self.reasons, "something was sent after the end"
            self.sent.setdefault(key, []).extend(output.token_ids)
            self.cached[key] = output.num_cached_tokens
            if output.finish_reason:
                self.reasons[key] = output.finish_reason


def expected_answer(prompt, max_tokens, stop=()):
    """What the oracle answers to a prompt when nothing else runs."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


class Histories(RuleBasedStateMachine):
    """Arrivals, cancellations, finishes and preemptions on tiny pools."""

    options: ClassVar[dict] = {}
    ahead: ClassVar[int] = 0

    def __init__(self):
        super().__init__()
        self.driver = Driver(make_scheduler(**self.options), ahead=self.ahead)
        self.names = itertools.count()
        self.requests = {}
        self.aborted = set()
        self.steps_at_head = 0

    @rule(
        shared=st.integers(0, 14),
        own=st.lists(st.integers(0, 3), min_size=1, max_size=8),
        max_tokens=st.integers(0, 9),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        stop=st.sampled_from([(), (), (7, 8, 9, 10, 11, 12)]),
        salt=st.sampled_from(["", "", "other"]),
    )
    def arrive(self, shared, own, max_tokens, n, priority, stop, salt):
        name = f"r{next(self.names)}"
        prompt = [token % 3 for token in range(shared)] + own
        options = {"max_tokens": max_tokens, "n": n, "priority": priority, "stop": stop, "salt": salt}
        request = self.driver.submit(name, prompt, **options)
        assert (request is None) == (len(prompt) + max_tokens > 32)
        if request is not None:
            self.requests[name] = request

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data):
        name = data.draw(st.sampled_from(sorted(self.requests)))
        index = data.draw(st.one_of(st.none(), st.integers(0, self.requests[name].params.n - 1)))
        self.driver.abort(name, index)
        choices = range(self.requests[name].params.n) if index is None else [index]
        self.aborted |= {(name, choice) for choice in choices}

    @rule(steps=st.integers(1, 6))
    def run(self, steps):
        for _ in range(steps):
            head = (self.driver.scheduler.running or [None])[0]
            before = head and (len(head.tokens), head.num_computed)
            for _ in range(1 + self.ahead):  # what is in flight may have to come home before the next can be planned
                if not self.driver.loop.step():
                    assert not self.driver.scheduler.has_work, "work waits and no step is planned"
                    return
                self.driver.scheduler.check()
            if head is not None and head.status.value == "running":  # the first in order always moves
                assert (len(head.tokens), head.num_computed) > before

    @rule()
    def break_the_next_step(self):
        self.driver.oracle.fail_once_after_writing = True

    @invariant()
    def everything_adds_up(self):
        scheduler = self.driver.scheduler
        scheduler.check()
        never_started = [s for s in scheduler.waiting if s.scheduled_at is None]
        assert scheduler.admission.waiting == len(never_started)
        for key, tokens in self.driver.sent.items():
            request = self.requests[key[0]]
            answer = expected_answer(request.prompt, request.params.max_tokens, request.params.stop_token_ids)
            assert tokens == answer[: len(tokens)], "a token is wrong, lost or sent twice"

    def teardown(self):
        self.driver.run()
        scheduler = self.driver.scheduler
        assert scheduler.pool.num_free == scheduler.pool.num_blocks
        assert not scheduler.has_work
        for name, request in self.requests.items():
            answer = expected_answer(request.prompt, request.params.max_tokens, request.params.stop_token_ids)
            for index in range(request.params.n):
                if (name, index) not in self.aborted:
                    assert self.driver.sent[name, index] == answer
                    stopped = bool(answer) and answer[-1] in request.params.stop_token_ids
                    assert self.driver.reasons[name, index] == ("stop" if stopped else "length")


class HistoriesAhead(Histories):
    """Every step is planned while the one before is still in flight, on a device that computes late."""

    options: ClassVar[dict] = {"num_blocks": 10}
    ahead: ClassVar[int] = 1

    @rule(steps=st.integers(1, 2))
    def the_device_catches_up(self, steps):
        self.driver.oracle.catch_up(steps)


class HistoriesAheadOfManySmallSteps(HistoriesAhead):
    options: ClassVar[dict] = {"num_blocks": 16, "block_size": 2, "max_sequences": 7, "budget": 7}


class HistoriesWithoutPrefixCache(Histories):
    options: ClassVar[dict] = {"prefix_caching": False}


class HistoriesOfManySmallSteps(Histories):
    """More slots than blocks can feed, and a budget of one token each."""

    options: ClassVar[dict] = {"num_blocks": 16, "block_size": 2, "max_sequences": 7, "budget": 7}


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestHistoriesAhead = HistoriesAhead.TestCase
TestHistoriesAhead.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestHistoriesAheadOfManySmallSteps = HistoriesAheadOfManySmallSteps.TestCase
TestHistoriesAheadOfManySmallSteps.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestHistoriesWithoutPrefixCache = HistoriesWithoutPrefixCache.TestCase
TestHistoriesOfManySmallSteps = HistoriesOfManySmallSteps.TestCase
TestHistoriesOfManySmallSteps.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestHistoriesWithoutPrefixCache.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_long_prompt_does_not_stop_those_who_generate():
    driver = Driver(make_scheduler(num_blocks=32, max_model_len=128, budget=8))
    driver.submit("talks", [1], max_tokens=20)
    driver.loop.step()
    driver.submit("long", range(60), max_tokens=1)
    for tokens in range(2, 11):  # 60 prompt tokens, seven beside the one that talks
        driver.loop.step()
        assert len(driver.sent["talks", 0]) == tokens
    assert ("long", 0) in driver.reasons


def test_equal_prompts_are_computed_once():
    driver = Driver(make_scheduler(num_blocks=16, budget=32))
    driver.submit("first", range(17), max_tokens=1)
    driver.run()
    before = driver.scheduler.stats.prompt_tokens
    driver.submit("second", range(17), max_tokens=1)
    driver.run()
    assert driver.cached["second", 0] == 16
    assert driver.scheduler.stats.prompt_tokens - before == 1


def test_what_is_being_generated_is_found_block_by_block():
    driver = Driver(make_scheduler(num_blocks=16, budget=32))
    driver.submit("talks", [1, 2, 3], max_tokens=20)
    for _ in range(10):  # the prompt, and nine tokens of the answer
        driver.loop.step()
    driver.submit("asks", [1, 2, 3, *driver.sent["talks", 0]], max_tokens=1)
    driver.loop.step()
    assert ("talks", 0) not in driver.reasons
    assert driver.cached["asks", 0] == 12


def test_other_salts_share_nothing():
    driver = Driver(make_scheduler(num_blocks=16, budget=32))
    driver.submit("first", range(17), max_tokens=1, salt="a")
    driver.run()
    driver.submit("second", range(17), max_tokens=1, salt="b")
    driver.run()
    assert driver.cached["second", 0] == 0


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("length", [1, 4, 5, 16, 18])
def test_choices_share_the_prompts_blocks(length, prefix_caching):
    scheduler = make_scheduler(num_blocks=32, budget=32, prefix_caching=prefix_caching)
    driver = Driver(scheduler)
    driver.submit("many", range(length), n=4, max_tokens=3)
    driver.loop.step()
    driver.loop.step()
    assert len(scheduler.running) == 4
    full = (length - 1) // 4
    assert {tuple(sequence.blocks[:full]) for sequence in scheduler.running} == {
        tuple(scheduler.running[0].blocks[:full])
    }
    assert scheduler.stats.prompt_tokens == length + 3  # each choice computes the last prompt token for itself
    driver.run()
    assert all(driver.sent["many", index] == expected_answer(range(length), 3) for index in range(4))


def test_out_of_blocks_the_youngest_of_the_lowest_priority_goes():
    driver = Driver(make_scheduler(num_blocks=8, budget=16))
    driver.submit("low", [1, 1, 1, 1], max_tokens=12, priority=1)
    driver.submit("old", [2, 2, 2, 2], max_tokens=12)
    driver.loop.step()
    driver.submit("young", [3, 3, 3, 3], max_tokens=12)
    while not driver.scheduler.stats.preemptions:
        driver.loop.step()
    assert [sequence.request.request_id for sequence in driver.scheduler.waiting] == ["low"]
    driver.run()
    assert driver.sent["low", 0] == expected_answer([1, 1, 1, 1], 12)
    assert set(driver.reasons.values()) == {"length"}


def test_a_step_that_fails_once_changes_no_answer():
    for broken in range(12):
        driver = Driver(make_scheduler(num_blocks=16))
        for number in range(3):
            driver.submit(f"r{number}", [number] * 6, max_tokens=8)
        for _ in range(broken):
            driver.loop.step()
        driver.oracle.fail_once_after_writing = True
        driver.run()
        for number in range(3):
            assert driver.sent[f"r{number}", 0] == expected_answer([number] * 6, 8)


def test_who_comes_first_starts_first_and_priority_goes_before():
    driver = Driver(make_scheduler(max_sequences=1))
    for name, priority in (("a", 0), ("b", 0), ("urgent", -1), ("later", 1), ("c", 0)):
        driver.submit(name, [1, 2], max_tokens=2, priority=priority)
    driver.run()
    assert [name for name, _ in driver.reasons] == ["urgent", "a", "b", "c", "later"]


def test_a_sequence_aborted_while_its_step_runs_gets_nothing():
    driver = Driver(make_scheduler())
    driver.submit("gone", [1, 2])
    driver.submit("stays", [1, 3])
    step = driver.scheduler.plan()
    driver.scheduler.abort("gone")
    outputs = driver.scheduler.complete(step, driver.oracle.launch(step).results())
    assert [output.request_id for output in outputs] == ["stays"]
    driver.scheduler.check()


def test_nothing_is_computed_twice_without_a_preemption():
    driver = Driver(make_scheduler(num_blocks=64, max_sequences=4, budget=8, max_model_len=64))
    for number in range(4):
        driver.submit(f"r{number}", [number] * 13, max_tokens=6)
    driver.run()
    assert driver.scheduler.stats.preemptions == 0
    positions = [
        (slot, position) for slot, start, length in driver.oracle.computed for position in range(start, start + length)
    ]
    assert len(positions) == len(set(positions)) == 4 * (13 + 5)


def test_ahead_what_is_certain_to_end_is_not_planned_again_and_a_late_stop_costs_one_token():
    def computed(**options):
        driver = Driver(make_scheduler(num_blocks=64, max_model_len=12), ahead=1)
        driver.submit("r", [1, 2, 3], **options)
        driver.run()
        return sum(length for _, _, length in driver.oracle.computed), driver.sent["r", 0]

    assert computed(max_tokens=4) == (3 + 3, expected_answer([1, 2, 3], 4))
    assert computed(max_tokens=9) == (3 + 8, expected_answer([1, 2, 3], 9))  # as long as a sequence may be
    stop = expected_answer([1, 2, 3], 3)[2]
    assert computed(max_tokens=8, stop=(stop,)) == (3 + 3, expected_answer([1, 2, 3], 8, (stop,)))


def test_what_can_never_fit_is_refused_at_once():
    driver = Driver(make_scheduler(num_blocks=4, block_size=4, max_model_len=100))
    driver.submit("big", range(10), max_tokens=7)
    driver.submit("empty", [], max_tokens=7)
    assert [refusal.kind for refusal in driver.refusals] == ["never_fits", "never_fits"]


def test_the_queue_is_bounded_by_requests_and_by_tokens():
    driver = Driver(make_scheduler(max_waiting=2, max_waiting_tokens=20))
    driver.submit("a", range(5), n=2)
    driver.submit("b", range(5))
    assert [refusal.request_id for refusal in driver.refusals] == ["b"]
    driver = Driver(make_scheduler(max_waiting=20, max_waiting_tokens=20))
    driver.submit("a", range(15))
    driver.submit("b", range(15))
    assert [(refusal.request_id, refusal.kind) for refusal in driver.refusals] == [("b", "overloaded")]
    driver.run()
    driver.submit("c", range(15))
    driver.run()
    assert ("c", 0) in driver.reasons


def test_a_row_that_cannot_be_computed_fails_alone():
    driver = Driver(make_scheduler(num_blocks=16))
    driver.oracle.failing_token = 77
    driver.submit("good", [1, 2, 3], max_tokens=4)
    driver.submit("bad", [1, 77], max_tokens=4)
    driver.submit("other", [4, 5], max_tokens=4)
    driver.run()
    assert driver.reasons == {("good", 0): "length", ("bad", 0): "error", ("other", 0): "length"}
    assert driver.sent["good", 0] == expected_answer([1, 2, 3], 4)


def test_a_duplicate_id_is_refused_and_the_first_goes_on():
    driver = Driver(make_scheduler())
    driver._receive = lambda message: driver.refusals.append(message) if isinstance(message, Refused) else None
    driver.loop._send = driver._receive
    driver.submit("same", [1, 2])
    driver.submit("same", [1, 2])
    assert [refusal.request_id for refusal in driver.refusals] == ["same"]
    assert driver.scheduler.admission.waiting == 1
