"""What the grammar of calls lets through, by the engine's own library."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest

from leoserve.model.step import Grammar
from leoserve.text.callgrammar import CannotCombine, call_grammar
from leoserve.text.tools import Calling, Tool, call_text

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
WEATHER = Tool("wetter", None, CITY)
CLOCK = Tool("uhr")
STRICT = Tool("wetter", None, CITY, strict=True)

KOELN = call_text({"name": "wetter", "arguments": '{"city": "Köln </tool_call>", "days": 2}'})
TIME = call_text({"name": "uhr", "arguments": "{}"})
WRONG = call_text({"name": "wetter", "arguments": '{"days": 2}'})


class Bytes:
    """A tokenizer whose tokens are the bytes, and an end."""

    eos_token_id = 256
    bos_token_id = None
    tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]
    special_token_ids = [256]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


def takes(grammar: Grammar | None, text: str) -> bool:
    """Whether `text` is a whole answer by the grammar."""
    assert grammar is not None
    assert grammar.kind == "lark"
    matcher = llguidance.LLMatcher(TOKENIZER, grammar.source, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def calling(*tools: Tool, mode: Any = "auto", parallel: bool = True, allowed: set[str] | None = None) -> Calling:
    return Calling(tools, frozenset(allowed or {tool.name for tool in tools}), mode, parallel)


@pytest.mark.parametrize(
    ("text", "several", "single"),
    [
        (KOELN, True, True),
        (TIME, True, True),
        (KOELN + "\n" + TIME, True, False),
        ("", False, False),
        ("Hallo", False, False),
        ("Hallo " + KOELN, False, False),
        (KOELN + "!", False, False),
        (WRONG, False, False),
        (KOELN.replace("wetter", "fremd"), False, False),
        (KOELN.replace('"days": 2', '"days": 2, "x": 1'), False, False),
        (KOELN.replace('"days": 2', '"days":   2'), False, False),
    ],
)
def test_an_answer_that_must_call_is_calls_that_fit_their_functions(text: str, several: bool, single: bool) -> None:
    tools = (WEATHER, CLOCK)
    assert takes(call_grammar(calling(*tools, mode="required"), None), text) == several
    assert takes(call_grammar(calling(*tools, mode="required", parallel=False), None), text) == single


def test_a_named_function_is_called_once_and_no_other() -> None:
    grammar = call_grammar(calling(WEATHER, CLOCK, mode="named", allowed={"uhr"}), None)
    assert takes(grammar, TIME)
    assert not takes(grammar, KOELN)
    assert not takes(grammar, TIME + "\n" + TIME)


def test_a_forced_answer_comes_to_an_end() -> None:
    grammar = call_grammar(calling(CLOCK, mode="required"), None)
    assert takes(grammar, "\n".join([TIME] * 32))
    assert not takes(grammar, "\n".join([TIME] * 33))


def test_free_text_needs_no_grammar_unless_a_function_is_strict() -> None:
    assert call_grammar(calling(WEATHER, CLOCK), None) is None


@pytest.mark.parametrize(
    ("text", "several", "single"),
    [
        ("", True, True),
        ("Hallo <tool_cal", True, True),
        (KOELN, True, True),
        ("Moment.\n" + KOELN, True, True),
        (KOELN + "\n" + TIME, True, False),
        (KOELN + " Fertig.", True, False),
        ("Moment. " + WRONG, False, False),
        ("a <tool_call>", False, False),
        ("a <tool_call> b", False, False),
        (call_text({"name": "uhr", "arguments": '{"zone": [1]}'}), True, True),
    ],
)
def test_with_a_strict_function_any_text_goes_and_any_call_is_right(text: str, several: bool, single: bool) -> None:
    assert takes(call_grammar(calling(STRICT, CLOCK), None), text) == several
    assert takes(call_grammar(calling(STRICT, CLOCK, parallel=False), None), text) == single


@pytest.mark.parametrize(
    ("content", "good"),
    [
        (Grammar("json_schema", json.dumps({"type": "object", "required": ["größe"]}), "r"), '{"größe": 1}'),
        (Grammar("regex", "a/[0-9]+\\/\n?", "r"), "a/12/\n"),
    ],
)
def test_text_beside_calls_has_the_wanted_form(content: Grammar, good: str) -> None:
    grammar = call_grammar(calling(WEATHER, CLOCK), content)
    assert takes(grammar, good)
    assert takes(grammar, TIME)
    assert takes(grammar, TIME + "\n" + TIME)
    assert not takes(grammar, "Hallo")
    assert not takes(grammar, good + TIME)
    forced = call_grammar(calling(CLOCK, mode="required"), content)
    assert not takes(forced, good)
    assert takes(forced, TIME)


def test_a_grammar_for_text_is_not_combined_with_calls() -> None:
    with pytest.raises(CannotCombine):
        call_grammar(calling(CLOCK), Grammar("lark", 'start: "a"', "r"))


def test_what_no_grammar_can_express_is_let_go_only_without_strict() -> None:
    odd = {"type": "object", "properties": {"a": {"type": "string", "format": "klingon"}}, "required": ["a"]}
    call = call_text({"name": "f", "arguments": '{"a": "x"}'})
    assert takes(call_grammar(calling(Tool("f", None, odd), mode="required"), None), call)
    strict = call_grammar(calling(Tool("f", None, odd, strict=True), mode="required"), None)
    assert strict is not None
    assert llguidance.LLMatcher(TOKENIZER, strict.source, log_level=0).is_error()


def test_references_are_those_of_the_functions_own_schema() -> None:
    tree = {
        "type": "object",
        "properties": {"node": {"$ref": "#/$defs/node"}},
        "required": ["node"],
        "$defs": {"node": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/node"}}]}},
    }
    grammar = call_grammar(calling(Tool("baum", None, tree), CLOCK, mode="required"), None)
    assert takes(grammar, call_text({"name": "baum", "arguments": '{"node": [[null], []]}'}))
    assert not takes(grammar, call_text({"name": "baum", "arguments": '{"node": [1]}'}))
