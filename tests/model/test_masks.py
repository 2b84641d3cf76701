"""Masks of several answers at once, made by whoever has nothing to do, and parsers that are moved on meanwhile."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator

import llguidance
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leokernels import native
from leoserve.model import nativeparsers
from leoserve.model.grammar import CompiledGrammar, Grammars
from leoserve.model.masks import Masks
from leoserve.model.nativeparsers import NativeParsers, parsers_for
from leoserve.model.parsers import MAX_FORCED, PackagedParsers, Parsers, Spelling
from leoserve.model.step import Grammar, TokenTable
from tests.model.test_grammar import CASES, ENDS, PIECES, TABLE, VOCAB, allowed, compiled

SOURCES = ["(ja|nein){1,9}", "[a-z]{2,7}", "x(y|z)*", "a"]

pytestmark = pytest.mark.skipif(native.missing() is not None, reason="the native library is missing")


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    native.use_threads(request.param)
    yield request.param
    native.use_threads(None)


def followed() -> Grammars:
    return Grammars(TABLE, NativeParsers)


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return followed()


def regex(grammars: Grammars, source: str) -> CompiledGrammar:
    return grammars.compile(Grammar("regex", source, "field"))


def ids(masks: Masks, slot: int) -> list[int]:
    return np.flatnonzero(masks.allowed_flags(slot)).tolist()


def test_llguidance_has_its_c_functions_here() -> None:
    """A version that lacks them works, but an answer that follows a grammar then holds up the others of its step."""
    assert nativeparsers.functions() is not None
    assert isinstance(parsers_for("cpu")(Spelling(TABLE)), NativeParsers)
    assert parsers_for("cuda") is PackagedParsers


def test_an_answer_that_no_token_can_go_on_with_has_failed_and_is_not_whole() -> None:
    """As where a form wants digits of a tokenizer that has none."""
    table = TokenTable([b"<end>", *(bytes([97 + letter]) for letter in range(26))], [0], [0])
    masks = Masks(1, len(table.pieces), aside=False)
    masks.set_slot(0, regex(Grammars(table, parsers_for("cpu")), "a[0-9]").answer())
    masks.begin([0])
    assert ids(masks, 0) == [1]
    complete, moving = masks.advance([0], {0: 1})
    assert list(complete if moving is None else moving.ended()) == []
    masks.begin([0])
    assert ids(masks, 0) == []
    assert masks.matchers[0].error is not None


def test_the_c_structures_have_their_fields_where_llguidance_has_them() -> None:
    told, packaged = NativeParsers(Spelling(TABLE)).defaults().limits, llguidance.LLParserLimits()
    names = [name for name, *_ in told._fields_]
    assert {name: getattr(told, name) for name in names} == {name: getattr(packaged, name) for name in names}


def test_without_its_c_functions_the_packaged_classes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nativeparsers._SIGNATURES, "no_such_function", (None, []))
    nativeparsers.functions.cache_clear()
    try:
        assert parsers_for("cpu") is PackagedParsers
        with pytest.raises(RuntimeError, match="cannot be used here"):
            followed()
    finally:
        monkeypatch.undo()
        nativeparsers.functions.cache_clear()


@pytest.mark.parametrize("case", [case for case in CASES if not case["refused"]], ids=lambda case: case["name"])
def test_both_kinds_of_parsers_allow_the_same(case: dict[str, object], grammars: Grammars) -> None:
    packaged = compiled("json_schema", case["schema"])
    own = grammars.compile(Grammar("json_schema", json.dumps(case["schema"]), "field"))
    draw, left, right = random.Random(str(case["name"])), packaged.start(), own.start()
    for _ in range(50):
        may = allowed(left)
        assert allowed(right) == may
        token = draw.choice(may)
        left.advance(token)
        right.advance(token)
        assert (right.complete, right.failed) == (left.complete, left.failed)
        if left.complete or token in ENDS:
            return


@pytest.mark.parametrize("source", ["", "a"])
def test_one_that_can_only_end_is_let_end(source: str, grammars: Grammars) -> None:
    for grammar in (compiled("regex", source), regex(grammars, source)):
        matcher = grammar.start([PIECES.index(letter.encode()) for letter in source])
        assert set(allowed(matcher)) == ENDS
        assert matcher.complete or not source


@pytest.mark.usefixtures("threads")
def test_one_that_was_at_its_end_before_ends_with_the_token_that_says_so(grammars: Grammars) -> None:
    masks = Masks(1, VOCAB, aside=False)
    masks.set_slot(0, regex(grammars, "(|)").answer())
    masks.begin([0])
    assert set(ids(masks, 0)) == ENDS
    _, moving = masks.advance([0], {0: min(ENDS)})
    assert moving is not None
    assert moving.ended(wait=True) == [0]
    assert masks.matchers[0].error is None


def test_a_parser_that_fails_says_the_same_whatever_its_kind() -> None:
    source = Grammar("grammar", "start: " + '("a"? "b"? "c"?)' * 3000, "field")
    packaged, own = (grammars.compile(source).start() for grammars in (Grammars(TABLE), followed()))
    assert allowed(packaged) == allowed(own) == []
    assert packaged.error == own.error is not None


@pytest.mark.parametrize("parsers", [PackagedParsers, NativeParsers])
def test_answers_that_have_filled_their_lexer_s_states_make_their_grammar_one_that_failed(
    parsers: Callable[[Spelling], Parsers],
) -> None:
    """Each of its answers may be short: the states of all are counted, and what is compiled again has none of them."""
    source, grammars = Grammar("regex", "[ab]*a[ab]{16}", "field"), Grammars(TABLE, parsers)
    draw, letters = random.Random(3), [PIECES.index(b"a"), PIECES.index(b"b")]
    grammar, masks = grammars.compile(source), Masks(1, VOCAB, aside=False)
    for _ in range(400):
        masks.set_slot(0, grammar)
        for _ in range(300):
            masks.begin([0])
            if masks.fault(0) is not None:
                break
            masks.advance([0], {0: draw.choice(letters)})
            masks.settle()
        if grammar.failed:
            break
    assert grammar.failed
    assert allowed(grammar.start()) == []
    assert set(letters) <= set(allowed(grammars.compile(source).start()))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.text("größe\"':, {}[]12-aietrue", max_size=300))
def test_text_is_spelled_alike(text: str) -> None:
    spelling, data = Spelling(TABLE), text.encode()
    control = set(spelling.special_token_ids)
    speller = native.Speller([b"" if n in control else each for n, each in enumerate(spelling.tokens)], MAX_FORCED)
    assert speller(data) == spelling(data)


@pytest.mark.usefixtures("threads")
def test_answers_move_on_as_if_each_were_alone() -> None:
    """Random answers of several grammars in slots that come and go; each mask and each end as without a follower."""
    grammars, slots = followed(), 9
    own = [regex(grammars, source) for source in SOURCES]
    truth = [compiled("regex", source) for source in SOURCES]
    masks, draw = Masks(slots, VOCAB, aside=False), random.Random(7)
    alone = {}
    for _ in range(60):
        for slot in range(slots):
            if slot not in alone and draw.random() < 0.5:
                which = draw.randrange(len(SOURCES))
                masks.set_slot(slot, own[which].answer())
                alone[slot] = truth[which].start()
        here = [slot for slot in alone if draw.random() < 0.8]  # others sit a step out
        masks.begin(here)
        moves = {}
        for row, slot in enumerate(here):
            may = ids(masks, slot)
            assert may == allowed(alone[slot])
            moves[row] = draw.choice(may)
        complete, moving = masks.advance(here, moves)
        assert complete == []
        wait = draw.random() < 0.5
        ended = set(moving.ended(wait=wait)) if moving is not None and (wait or moving.ended(wait=False)) else None
        for row, slot in enumerate(here):
            alone[slot].advance(moves[row])
            if alone[slot].complete:
                del alone[slot]
                if draw.random() < 0.5:
                    masks.set_slot(slot, None)
                assert ended is None or row in ended
            else:
                assert ended is None or row not in ended
    masks.settle()


@pytest.mark.usefixtures("threads")
def test_a_slot_s_mask_is_its_new_answer_s_while_its_old_one_still_moves() -> None:
    grammars = followed()
    masks = Masks(2, VOCAB, aside=False)
    for _ in range(200):
        masks.set_slot(1, regex(grammars, "[a-f]+").answer())
        masks.begin([1])
        assert [PIECES[token] for token in ids(masks, 1)][:2] == [b"a", b"b"]
        masks.advance([1], {0: PIECES.index(b"a")})
        masks.set_slot(1, regex(grammars, "7").answer())  # nobody has waited for the other's mask
        masks.begin([1])
        assert [PIECES[token] for token in ids(masks, 1)] == [b"7"]


@pytest.mark.usefixtures("threads")
def test_an_answer_comes_back_where_it_stood_and_its_parser_is_not_led_there_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = regex(followed(), "abcdef?").answer()
    masks = Masks(3, VOCAB, aside=False)
    masks.set_slot(0, answer)
    tokens = [PIECES.index(letter) for letter in (b"a", b"b", b"c")]
    for token in tokens:
        masks.begin([0])
        assert ids(masks, 0) == [token]
        masks.advance([0], {0: token})

    def never(self: CompiledGrammar, generated: object = ()) -> object:
        raise AssertionError("led there again")

    monkeypatch.setattr(CompiledGrammar, "start", never)
    masks.set_slot(2, answer, tokens)  # while its last token is under way
    monkeypatch.undo()
    masks.begin([2])
    assert ids(masks, 2) == [PIECES.index(b"d")]
    masks.set_slot(1, answer, tokens[:2])  # what was generated is not what it has taken: from the beginning
    masks.begin([1])
    assert ids(masks, 1) == [PIECES.index(b"c")]


@pytest.mark.usefixtures("threads")
def test_a_parser_that_cannot_go_on_allows_nothing_and_holds_up_no_other() -> None:
    grammars, masks = followed(), Masks(2, VOCAB, aside=False)
    masks.set_slot(0, grammars.compile(Grammar("regex", "b[0-9]+", "field")))
    masks.set_slot(1, grammars.compile(Grammar("regex", "[a-z]+", "field")))
    masks.begin([0, 1])
    letter = PIECES.index(b"b")
    _, moving = masks.advance([0, 1], {0: letter, 1: letter})
    masks.begin([0, 1])
    _, moving = masks.advance([0, 1], {0: letter, 1: letter})  # no digit: as if the parser had got lost
    assert moving is not None
    assert moving.ended(wait=True) == []
    masks.begin([0, 1])
    assert ids(masks, 0) == []
    assert masks.matchers[0].error is not None
    assert letter in ids(masks, 1)
    assert masks.matchers[1].error is None


MOVES_AT_ITS_END = """
from leokernels import native
from leoserve.model.grammar import Grammars
from leoserve.model.masks import Masks
from leoserve.model.nativeparsers import NativeParsers
from leoserve.model.step import Grammar, TokenTable

native.use_threads(4)
letters = [bytes([97 + letter]) for letter in range(26)]
pieces = [b"<end>", *letters, *(a + b + c for a in letters for b in letters for c in letters)]
grammars, slots = Grammars(TokenTable(pieces, [0], [0]), NativeParsers), list(range(60))
masks = Masks(len(slots), len(pieces), aside=False)
for slot in slots:
    grammar = Grammar("regex", f"a[a-z]*b[a-z]{{{slot + 3},{400 + slot}}}x", "field")
    masks.set_slot(slot, grammars.compile(grammar).answer())
masks.begin(slots)
masks.advance(slots, dict.fromkeys(slots, pieces.index(b"abc")))
"""


@pytest.mark.parametrize("then", ["", "masks = grammar = None"])
def test_a_process_that_ends_and_masks_that_go_wait_for_what_moves(then: str) -> None:
    done = subprocess.run([sys.executable, "-c", MOVES_AT_ITS_END + then], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("threads")
def test_one_that_is_whole_is_told_with_the_next_step_and_is_asked_nothing_more() -> None:
    masks = Masks(2, VOCAB, aside=False)
    answer = regex(followed(), "ab").answer()
    masks.set_slot(0, answer)
    for letter in (b"a", b"b"):
        masks.begin([0])
        assert masks.whole([0], masks.rows([0])) == []
        assert ids(masks, 0) == [PIECES.index(letter)]
        masks.advance([0], {0: PIECES.index(letter)})
    masks.begin([0])
    masks.words()
    assert masks.whole([0], masks.rows([0])) == [0]
    masks.set_slot(1, answer, [PIECES.index(b"a"), PIECES.index(b"b")])  # it was preempted meanwhile
    masks.begin([1])
    masks.words()
    assert masks.whole([1], masks.rows([1])) == [0]
    assert masks.matchers[1].error is None
