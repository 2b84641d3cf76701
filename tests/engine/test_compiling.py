"""Requests with grammars wait for them, and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from leoserve.engine import compiling
from leoserve.engine.admission import Admission
from leoserve.engine.compiling import KEPT, Compiling
from leoserve.engine.loop import Constrained, ToLoop
from leoserve.engine.request import Abort, Refused, Request, SamplingParams, TokenTable
from leoserve.model.grammar import GrammarError
from leoserve.model.step import Grammar
from tests.conftest import PATIENCE

TABLE = TokenTable([b"", b"a"], [0], [0])


class Compiled(str):
    """Stands for a compiled grammar."""

    failed = False


class Slow:
    """Stands for the compiler; goes on when it is told to."""

    def __init__(self, _table: TokenTable, _parsers: object) -> None:
        self.compiled: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        Slow.last = self

    last: Slow

    def compile(self, grammar: Grammar) -> Any:
        assert self.gate.wait(PATIENCE)
        self.compiled.append(grammar.source)
        if grammar.source == "bad":
            raise GrammarError("no grammar")
        if grammar.source == "broken":
            raise MemoryError
        return Compiled(f"compiled {grammar.source}")


class Wired:
    """What the engine's receiving thread has: admission, the loop's inbox, the way back."""

    def __init__(self) -> None:
        self.admission = Admission(capacity=100, max_waiting=10_000, max_waiting_tokens=10**6)
        self.arrived = threading.Semaphore(0)
        self.loop: list[ToLoop] = []
        self.refused: list[Refused] = []
        self.compiling = Compiling(self._submit, self._refuse, self.admission)

    def _submit(self, message: ToLoop) -> None:
        self.loop.append(message)
        self.arrived.release()

    def _refuse(self, message: Refused) -> None:
        self.refused.append(message)
        self.arrived.release()

    def ask(self, name: str, source: str | None, n: int = 1) -> Request:
        grammar = None if source is None else Grammar("regex", source, "structured_outputs.regex")
        params = SamplingParams(max_tokens=5, n=n, grammar=grammar)
        request = Request(request_id=name, prompt=[1, 2], params=params, arrival=0.0)
        assert self.admission.admit(request) is None
        self.compiling.take(request)
        return request

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.arrived.acquire(timeout=PATIENCE)


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wired]:
    monkeypatch.setattr(compiling, "Grammars", Slow)
    wired = Wired()
    wired.compiling.take(TABLE)
    wired.ask("first", "first")
    wired.wait(1)
    wired.loop.clear()
    yield wired
    Slow.last.gate.set()


def test_a_request_waits_for_its_grammar_and_no_other_waits_for_it(wired: Wired) -> None:
    Slow.last.gate.clear()
    slow = wired.ask("slow", "a")
    plain = wired.ask("plain", None)
    abort = Abort(request_id="plain")
    wired.compiling.take(abort)
    assert wired.loop == [plain, abort]
    Slow.last.gate.set()
    wired.wait(3)
    assert wired.loop[2:] == [Constrained(slow, "compiled a")]  # type: ignore[arg-type]


def test_a_grammar_is_compiled_once(wired: Wired) -> None:
    for number in range(5):
        wired.ask(f"r{number}", "a")
    wired.wait(5)
    assert Slow.last.compiled == ["first", "a"]


def test_a_grammar_of_which_an_answer_has_failed_is_compiled_again(wired: Wired) -> None:
    wired.ask("r0", "a")
    wired.wait(1)
    wired.loop[0].grammar.failed = True  # type: ignore[union-attr]
    for number in range(1, 4):
        wired.ask(f"r{number}", "a")
    wired.wait(3)
    assert Slow.last.compiled == ["first", "a", "a"]


def test_an_abort_overtakes_no_request(wired: Wired) -> None:
    Slow.last.gate.clear()
    request, other = wired.ask("slow", "a"), wired.ask("other", "b")
    abort = Abort(request_id="slow", index=0)
    wired.compiling.take(abort)
    assert wired.loop == []
    Slow.last.gate.set()
    wired.wait(3)
    assert wired.loop.index(abort) == wired.loop.index(Constrained(request, "compiled a")) + 1  # type: ignore[arg-type]
    assert Constrained(other, "compiled b") in wired.loop  # type: ignore[arg-type]


def test_what_cannot_be_compiled_is_refused_and_waits_no_longer(wired: Wired) -> None:
    before = wired.admission.waiting
    Slow.last.gate.clear()
    wired.ask("one", "bad", n=3)
    wired.compiling.take(Abort(request_id="one"))
    assert wired.admission.waiting == before + 3
    Slow.last.gate.set()
    wired.wait(1)
    assert wired.refused == [Refused("one", "invalid_grammar", "no grammar", "structured_outputs.regex")]
    assert wired.loop == []
    assert wired.admission.waiting == before


def test_a_failure_is_told_to_nobody_but_the_log_and_is_not_kept(
    wired: Wired, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        wired.ask(f"r{number}", "broken")
        wired.wait(1)
        assert wired.refused[-1].message == "the grammar could not be compiled"
        assert Slow.last.compiled.count("broken") == number
    assert "MemoryError" in caplog.text


def test_a_refusal_is_kept_like_a_grammar(wired: Wired) -> None:
    for number in (1, 2):
        wired.ask(f"r{number}", "bad")
        wired.wait(1)
    assert Slow.last.compiled.count("bad") == 1


def test_the_grammars_kept_are_the_latest(wired: Wired) -> None:
    for number in range(KEPT):
        wired.ask("again", "first")
        wired.ask(f"r{number}", f"g{number}")
        wired.wait(2)
    assert Slow.last.compiled.count("first") == 1, "used all the time"
    wired.ask("again", "g0")
    wired.wait(1)
    assert Slow.last.compiled.count("g0") == 2, "not used for long"


def test_without_a_tokenizer_a_grammar_is_refused() -> None:
    wired = Wired()
    wired.ask("one", "a")
    wired.wait(1)
    assert wired.refused[0].kind == "invalid_grammar"
