"""Answers whose grammars turn out to be at their end after the step is completed: the same as if it had been told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve.engine.loop import Constrained
from leoserve.engine.request import Request, SamplingParams
from leoserve.model.step import Computed, Grammar, RowResult, Step, in_full
from tests.engine.paged_oracle import PagedOracle
from tests.engine.test_scheduler import Driver, expected_answer, make_scheduler

ENDS = tuple(range(0, 50, 5))  # tokens after which the grammar allows nothing


class Grammatical:
    """Stands for a compiled grammar, and for its answers."""

    def __init__(self) -> None:
        self.whole = False

    def answer(self) -> Grammatical:
        return Grammatical()


class GrammarOracle(PagedOracle):
    """Says of rows that follow a grammar whether they have ended: in their results, late, or with the next step."""

    def __init__(self, late: Callable[[int], bool], known: Callable[[int], bool], **options: Any) -> None:
        super().__init__(**options)
        self.late, self.known = late, known  # by the number of a step
        self.steps = 0
        self.following: dict[int, Grammatical | None] = {}  # by slot

    def launch(self, step: Step) -> Computed:
        self.check(step)
        for row in step.rows:
            if row.admitted:
                self.following[row.slot] = row.admitted.grammar  # type: ignore[assignment]
        results = self.run(step, self._fails_now())
        ended = []
        for number, row in enumerate(step.rows):
            answer = self.following[row.slot]
            if row.samples and answer is not None and answer.whole:
                results[number] = RowResult(complete=True)
            elif row.samples and answer is not None and in_full(results[number]).token in ENDS:
                answer.whole = True
                ended.append(number)
        self.steps += 1
        if self.late(self.steps):
            known = self.known(self.steps)
            return Computed(results, lambda *, wait: ended if wait or known else ())
        for number in ended:
            results[number] = RowResult(in_full(results[number]).token, complete=True)
        return Computed(results)


def driver(late: Callable[[int], bool], num_blocks: int = 8, known: Callable[[int], bool] = lambda _: True) -> Driver:
    made = Driver(make_scheduler(num_blocks=num_blocks))
    made.oracle = made.loop.runner = GrammarOracle(late, known, num_blocks=num_blocks, block_size=4, budget=8)
    return made


def submit(to: Driver, name: str, prompt: list[int], max_tokens: int, n: int = 1, *, follows: bool = True) -> None:
    grammar = Grammar("regex", "a", "field") if follows else None
    params = SamplingParams(max_tokens=max_tokens, n=n, grammar=grammar)
    request = Request(request_id=name, prompt=prompt, params=params, arrival=float(len(name)))
    assert to.scheduler.admission.admit(request) is None
    to.loop.submit(Constrained(request, Grammatical()) if follows else request)  # type: ignore[arg-type]
    to.loop.receive()


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 12), st.integers(1, 2), st.booleans()
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(REQUESTS, st.integers(6, 12), st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)))
def test_tokens_and_reasons_are_those_of_ends_that_are_told_at_once(
    requests: list[tuple[list[int], int, int, bool]], num_blocks: int, late: set[int], known: set[int]
) -> None:
    """With few blocks, so that answers are preempted and come back."""
    run = driver(late.__contains__, num_blocks, known.__contains__)
    for number, (prompt, max_tokens, n, follows) in enumerate(requests):
        submit(run, f"r{number}", prompt, max_tokens, n, follows=follows)
    run.run()
    assert not run.oracle.violations
    for number, (prompt, max_tokens, n, follows) in enumerate(requests):
        expected = expected_answer(prompt, max_tokens, ENDS if follows else ())
        reason = "stop" if follows and expected[-1] in ENDS else "length"
        for index in range(n):
            assert run.sent[f"r{number}", index] == expected
            assert run.reasons[f"r{number}", index] == reason
    assert run.scheduler.snapshot().blocks_used == 0
    tokens = sum(len(answer) for answer in run.sent.values())
    assert run.scheduler.stats.generation_tokens == tokens


def prompt_that_ends(after: int) -> list[int]:
    """One whose answer has its first end as token number `after`."""
    for first in range(10_000):
        answer = expected_answer([first % 100, first // 100], after, ENDS)
        if len(answer) == after and answer[-1] in ENDS:
            return [first % 100, first // 100]
    raise AssertionError("none is found")


def test_the_end_comes_before_the_next_step_and_frees_what_was_held() -> None:
    run = driver(lambda _: True)
    submit(run, "a", prompt_that_ends(2), 9)
    assert run.loop.step()
    assert run.loop.step()
    assert (len(run.sent["a", 0]), run.reasons) == (2, {})
    assert not run.loop.step()  # nothing is left to compute
    assert (len(run.sent["a", 0]), run.reasons) == (2, {("a", 0): "stop"})
    assert run.oracle.steps == 2
    run.scheduler.check()
    assert not run.scheduler.has_work


def test_where_it_is_not_known_by_then_the_next_step_s_result_says_it() -> None:
    run = driver(lambda _: True, known=lambda _: False)
    submit(run, "a", prompt_that_ends(2), 9)
    for _ in range(2):
        assert run.loop.step()
    assert run.reasons == {}
    assert run.loop.step()
    assert (len(run.sent["a", 0]), run.reasons) == (2, {("a", 0): "stop"})
    assert run.oracle.steps == 3
    run.scheduler.check()
    assert not run.scheduler.has_work


def test_one_that_is_aborted_before_its_end_is_told_gets_nothing_more() -> None:
    run = driver(lambda _: True)
    submit(run, "a", prompt_that_ends(1), 9)
    submit(run, "bb", [1], 3, follows=False)
    run.loop.step()
    run.abort("a")
    run.run()
    assert ("a", 0) not in run.reasons
    assert run.reasons["bb", 0] == "length"


@pytest.mark.parametrize(("follows", "max_tokens", "asked"), [(True, 2, True), (True, 3, False), (False, 2, False)])
def test_ends_are_waited_for_only_at_a_last_token_of_one_that_follows_a_grammar(
    follows: bool, max_tokens: int, asked: bool
) -> None:
    run, times = driver(lambda _: True), []
    submit(run, "a", prompt_that_ends(3), max_tokens, follows=follows)
    for _ in range(2):
        step = run.scheduler.plan()
        assert step is not None
        launched = run.oracle.launch(step)
        run.scheduler.complete(step, launched.results(), 0.0, lambda: times.append(1) or ())  # type: ignore[func-returns-value]
    assert bool(times) == asked
