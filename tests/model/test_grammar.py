"""Answers that follow a grammar: what is let through, what random choices end as, and how much work it may be."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from leoserve.model.grammar import CompiledGrammar, GrammarError, Grammars, Matcher
from leoserve.model.masks import Masks
from leoserve.model.parsers import MAX_FORCED, Spelling
from leoserve.model.step import Grammar, GrammarKind, TokenTable

SCHEMAS = Path(__file__).parents[1] / "text" / "schemas"
CASES = [json.loads(path.read_text()) for path in sorted(SCHEMAS.glob("*.json"))]
DRAFT = jsonschema.Draft202012Validator

# A small vocabulary of the usual kind: control tokens, every byte, some longer pieces that end in odd places.
CONTROL = [b"<unk>", b"<s>", b"</s>", b"<|im_end|>"]
LONGER = [
    '":',
    '": "',
    '", "',
    '"}',
    "}]",
    "{}",
    "[]",
    "  ",
    "\n  ",
    "null",
    "true",
    "12",
    ".5",
    "e+",
    "-",
    "ie",
    "sch",
]
LONGER += ["größe", "Ä", "ß", "😀", '\\"', "\\u00", "<|", "im_", "end|>", "</s", "aaaa", "2024-", ":30", "Z"]
PIECES = CONTROL + [bytes([byte]) for byte in range(256)] + [text.encode() for text in LONGER]
PIECES += [b"\xc3", b"\xf0\x9f", b""]  # half characters, and an id without a token
TABLE = TokenTable(PIECES, [0, 1, 2, 3], [2, 3])
VOCAB = len(PIECES) + 30  # rows of the network
ENDS = set(TABLE.ends)
CLOSING = {number for number, piece in enumerate(PIECES) if piece in (b'"', b"}", b"]", b"0", b"null")}

GRAMMARS = Grammars(TABLE)


def compiled(kind: GrammarKind, source: Any) -> CompiledGrammar:
    return GRAMMARS.compile(Grammar(kind, source if isinstance(source, str) else json.dumps(source), "field"))


def allowed(matcher: Matcher) -> list[int]:
    """The ids that may come next."""
    masks = Masks(3, VOCAB, aside=False)
    masks.matchers[1] = matcher
    masks.begin([1])
    return np.flatnonzero(masks.allowed_flags(1)).tolist()


def takes(grammar: CompiledGrammar, text: str) -> bool:
    """Whether `text`, in the pieces that the grammar allows, is a whole answer."""
    matcher, data = grammar.start(), text.encode()
    while data:
        may = [token for token in allowed(matcher) if token not in ENDS and data.startswith(PIECES[token])]
        if not may or matcher.complete:
            return False
        token = max(may, key=lambda token: len(PIECES[token]))
        matcher.advance(token)
        data = data[len(PIECES[token]) :]
    return matcher.complete or bool(ENDS & set(allowed(matcher)))


def walk(grammar: CompiledGrammar, draw: random.Random, free: int = 40, most: int = 1500) -> tuple[bytes, bool]:
    """A random answer, as of a model that knows nothing, and whether it ended; from `free` tokens on it tries to."""
    matcher, text = grammar.start(), b""
    for step in range(most):
        may = allowed(matcher)
        assert may, (matcher.error, text)
        token = draw.choice([each for each in may if step > free and (each in CLOSING or each in ENDS)] or may)
        assert token in ENDS or token not in TABLE.control
        matcher.advance(token)
        assert matcher.error is None
        if token in ENDS:
            return text, True
        text += PIECES[token]
        if matcher.complete:
            return text, True
    return text, False


@pytest.mark.parametrize("case", [case for case in CASES if not case["refused"]], ids=lambda case: case["name"])
def test_what_follows_the_schema_is_let_through_and_nothing_else_ends(case: dict[str, Any]) -> None:
    grammar = compiled("json_schema", case["schema"])
    if case["name"] != "multiple_of_cents":  # a quarter's multiples are written with two digits
        for value in case["valid"]:
            assert takes(grammar, json.dumps(value, ensure_ascii=False, separators=(",", ":"))), value
            assert takes(grammar, json.dumps(value, ensure_ascii=False)), value
    for value in case["invalid"]:
        assert not takes(grammar, json.dumps(value, ensure_ascii=False)), value
    validator = DRAFT(case["schema"], format_checker=DRAFT.FORMAT_CHECKER)
    draw = random.Random(case["name"])
    for text, ended in (walk(grammar, draw) for _ in range(2)):
        if ended:
            validator.validate(json.loads(text))
        assert not re.search(rb"[ \n\t]{42}", re.sub(rb'"(?:\\.|[^"\\])*"?', b"", text)), "endless white space"


@pytest.mark.parametrize("case", [case for case in CASES if case["refused"]], ids=lambda case: case["name"])
def test_what_cannot_be_promised_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(GrammarError) as caught:
        compiled("json_schema", case["schema"])
    assert 5 < len(str(caught.value)) <= 400
    assert "\n" not in str(caught.value)


def test_a_declared_name_has_one_spelling() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True}
    grammar = compiled("json_schema", schema)
    assert takes(grammar, '{"a": 1, "b": "x", "": null, "ä\\n": 2}')
    for text in ('{"\\u0061": "x"}', '{"a": "x"}', '{"b": 1, "a": "x"}', '{"\\ud800": 1}'):
        assert not takes(grammar, text)


def test_a_name_of_a_host_is_bounded_as_a_whole() -> None:
    grammar = compiled("json_schema", {"type": "string", "format": "hostname"})
    label = "a" * 60
    assert takes(grammar, json.dumps(".".join([label] * 4)))
    assert not takes(grammar, json.dumps(".".join([label] * 5)))


def test_white_space_between_values_is_bounded() -> None:
    grammar = compiled("json_schema", {"type": "object"})
    assert takes(grammar, '{\n\t"a" : [ 1 , 2 ]\n}')
    assert takes(grammar, "{\n" + " " * 40 + '"a": 1}')
    for text in ('{  "a": 1}', '{\n\n"a": 1}', "{\n" + " " * 41 + "}", ' {"a": 1}', '{"a": 1}\n'):
        assert not takes(grammar, text)


@pytest.mark.parametrize("text", ["<|im_end|>", "</s> und <s>", "<unk>"])
def test_a_text_spelled_like_a_control_token_is_text(text: str) -> None:
    for kind, source in (("json_schema", {"const": text}), ("lark", f"start: {json.dumps(json.dumps(text))}")):
        answer, ended = walk(compiled(kind, source), random.Random(1))  # type: ignore[arg-type]
        assert (json.loads(answer), ended) == (text, True)


def test_an_answer_may_not_end_before_it_is_whole() -> None:
    matcher = compiled("json_schema", {"type": "string"}).start()
    for character in '"ab':
        assert not ENDS & set(allowed(matcher))
        assert not matcher.complete
        matcher.advance(PIECES.index(character.encode()))
    matcher.advance(PIECES.index(b'"'))
    assert matcher.complete


def test_where_more_may_follow_the_model_ends_it() -> None:
    matcher = compiled("json_schema", {"type": "integer"}).start([PIECES.index(b"1")])
    assert not matcher.complete
    assert set(allowed(matcher)) > ENDS


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        ("regex", r"[A-ZÄÖÜ]{2}-\d{1,4}", ["KÖ-12", "MZ-1"], ["kö-12", "KÖ-", "KÖ-12345"]),
        ("grammar", 'start: "ja" | "nein" | OTHER\nOTHER: /viel+eicht/', ["ja", "vielllleicht"], ["j", "jaja", ""]),
        ("grammar", 'root ::= "ä" [0-9]+ (", " [0-9]+)*', ["ä1", "ä1, 22, 3"], ["ä", "ä1,"]),
        ("grammar", 'start: a\na: "(" a ")" | ""  # nested\n', ["", "(())"], ["(()", ")("]),
        ("grammar", 'start: "%json {" b\nb: %json {"const": "ä"} // %json', ['%json {"ä"'], ["%json {1"]),
    ],
)
def test_expressions_and_grammars(kind: GrammarKind, source: str, good: list[str], bad: list[str]) -> None:
    grammar = compiled(kind, source)
    assert all(takes(grammar, text) for text in good)
    assert not any(takes(grammar, text) for text in bad)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "(a"),
        ("regex", "a(?=b)"),
        ("grammar", "start: missing"),
        ("grammar", 'root ::= "a'),
        ("grammar", 'start: a\na: %json {"$ref": "#"}'),
        ("grammar", "start: %json {"),
        ("grammar", "start: %json"),
        ("grammar", "start: " + "(" * 3000 + '"a"' + ")" * 3000),
        ("grammar", "root ::= " + "(" * 3000 + '"a"' + ")" * 3000),
        ("grammar", ""),
        ("json_schema", "[]"),
        ("json_schema", '{"type": "integer", "multipleOf": 1000003}'),
    ],
)
def test_what_is_no_grammar_is_refused(kind: GrammarKind, source: str) -> None:
    with pytest.raises(GrammarError):
        compiled(kind, source)


def test_too_much_work_for_a_token_is_an_error_and_nothing_may_follow() -> None:
    matcher = compiled("grammar", "start: " + '("a"? "b"? "c"?)' * 3000).start()
    allowed(matcher)
    assert matcher.error is not None
    assert not matcher.complete
    assert allowed(matcher) == []


def test_a_thousand_optional_properties_can_be_written() -> None:
    schema = {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(1000)}}
    assert takes(compiled("json_schema", schema), '{"p0": 1, "p999": 2}')
    assert takes(compiled("json_schema", schema | {"additionalProperties": True}), '{"p0": 1, "p999": 2, "q": 3}')


def test_a_long_text_without_a_choice_is_spelled_piece_by_piece() -> None:
    text = "Größe " * (MAX_FORCED // 4)
    answer, ended = walk(compiled("json_schema", {"const": text}), random.Random(1))
    assert (json.loads(answer), ended) == (text, True)
    assert len(b"".join(PIECES[token] for token in Spelling(TABLE)(text.encode()))) in range(MAX_FORCED, MAX_FORCED + 9)


def test_an_answer_goes_on_where_it_stood() -> None:
    grammar = compiled("json_schema", {"type": "object", "properties": {"a": {"type": "integer"}}})
    draw, tokens, matcher = random.Random(3), [], grammar.start()
    for _ in itertools.takewhile(lambda _: not matcher.complete, range(25)):
        assert allowed(grammar.start(tokens)) == allowed(matcher)
        tokens.append(draw.choice([token for token in allowed(matcher) if token not in ENDS]))
        matcher.advance(tokens[-1])
    assert len(tokens) > 3


def test_masks_of_several_answers_at_once_and_of_none() -> None:
    masks = Masks(4, VOCAB, aside=True)
    digit, word = compiled("regex", "[0-9]"), compiled("regex", "[a-b]")
    masks.begin([])
    masks.set_slot(0, digit)
    masks.set_slot(3, word)
    masks.begin([0, 1, 3])
    assert {PIECES[token] for token in np.flatnonzero(masks.allowed_flags(0))} == {
        b"%d" % number for number in range(10)
    }
    assert {PIECES[token] for token in np.flatnonzero(masks.allowed_flags(3))} == {b"a", b"b"}
    masks.set_slot(3, digit)
    masks.begin([3])
    assert len(np.flatnonzero(masks.allowed_flags(3))) == 10


def test_a_tokenizer_without_an_end_lets_whole_answers_end_by_themselves() -> None:
    grammar = Grammars(TokenTable(PIECES, TABLE.control, [])).compile(Grammar("regex", "ab?", "field"))
    matcher = grammar.start([PIECES.index(b"a")])
    assert [token for token in allowed(matcher) if token < len(PIECES)] == [PIECES.index(b"b")]
    matcher.advance(PIECES.index(b"b"))
    assert matcher.complete
