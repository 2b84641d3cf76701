"""Calls in a model's text, however it is cut into pieces."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve.text.calls import CallParser, CallPiece, Content
from leoserve.text.tools import call_text

CITY = '{"city": "Köln </tool_call> \\" {[", "n": [3, {"a": null}]}'


def call(arguments: str = CITY, name: str = "wetter") -> str:
    return call_text({"name": name, "arguments": arguments})


def read(text: str, size: int = 1) -> tuple[str, list[tuple[str, str]], int]:
    """The text beside calls, the calls, and how many of them are complete. Checks what holds of any pieces."""
    parser = CallParser({"wetter", "uhr"})
    pieces = [piece for start in range(0, len(text), size) for piece in parser.push(text[start : start + size])]
    pieces += parser.flush()
    content, calls, complete, end = "", list[tuple[str, str]](), 0, 0
    for piece in pieces:
        assert end <= piece.end <= len(text)
        end = piece.end
        if isinstance(piece, Content):
            content += piece.text
            continue
        if piece.name is not None:
            assert piece.index == len(calls)
            calls.append((piece.name, ""))
        assert piece.index == len(calls) - 1
        name, arguments = calls[-1]
        calls[-1] = (name, arguments + piece.arguments)
        complete += piece.complete
    assert parser.calls == len(calls)
    return content, calls, complete


CASES: list[tuple[str, str, list[tuple[str, str]], int]] = [
    ("Hallo < du", "Hallo < du", [], 0),
    (" \n", " \n", [], 0),
    ("\n Hallo", "\n Hallo", [], 0),
    ("Moment <tool_cal", "Moment <tool_cal", [], 0),
    ("<tool_calls> sind <tool_call", "<tool_calls> sind <tool_call", [], 0),
    (call(), "", [("wetter", CITY)], 1),
    ("\n" + call() + "\n" + call("{}", "uhr") + "\n", "", [("wetter", CITY), ("uhr", "{}")], 2),
    ("Ich sehe nach.\n" + call(), "Ich sehe nach.\n", [("wetter", CITY)], 1),
    (call() + " und", " und", [("wetter", CITY)], 1),
    (call(name="fremd"), call(name="fremd"), [], 0),
    (call(name="fremd") + call(), call(name="fremd"), [("wetter", CITY)], 1),
    ("<tool_call>" + call(), "<tool_call>", [("wetter", CITY)], 1),
    ("<tool_call>nein</tool_call>", "<tool_call>nein</tool_call>", [], 0),
    (
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        [],
        0,
    ),
    ('<tool_call>{"name": "uhr", "arguments": [1]} x', '<tool_call>{"name": "uhr", "arguments": [1]} x', [], 0),
    ('<tool_call>{"name": "uhr", "arguments": "x"} x', '<tool_call>{"name": "uhr", "arguments": "x"} x', [], 0),
    ('<tool_call>{"name": "uhr"}</tool_call>', "", [("uhr", "{}")], 1),
    ('<tool_call>{"name": "uhr", "arguments": null}</tool_call>', "", [("uhr", "{}")], 1),
    ('<tool_call>{"arguments": {"a": [1]} , "name": "uhr"}</tool_call>', "", [("uhr", '{"a": [1]}')], 1),
    ('<tool_call>{"name": "uhr", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("uhr", '{"a": 1}')], 1),
    ('<tool_call>{"n": -1.5e3, "name": "uhr","arguments":{} , "z": 1 }</tool_call>', "", [("uhr", "{}")], 1),
    ('<tool_call>{"name": "u\\u0068r", "arguments": {}}</tool_call>', "", [("uhr", "{}")], 1),
    (call()[: -len("\n</tool_call>")] + " dann", " dann", [("wetter", CITY)], 1),
    (call('{"a": wie?}') + call(), "", [("wetter", '{"a": wie?}}\n'), ("wetter", CITY)], 2),
    (call('{"a": 1') + "x", "x", [("wetter", '{"a": 1}')], 1),
    (call()[:24], call()[:24], [], 0),
    (call()[:-30], "", [("wetter", CITY[: len(call()) - 30 - call().index(CITY)])], 0),
]


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize(("text", "content", "calls", "complete"), CASES)
def test_calls_are_found_and_all_else_is_text(
    text: str, content: str, calls: list[tuple[str, str]], complete: int, size: int
) -> None:
    assert read(text, size) == (content, calls, complete)


def test_arguments_are_given_out_while_they_are_written() -> None:
    parser = CallParser({"wetter"})
    start = call().index(CITY)
    assert parser.push(call()[:start]) == []
    first, *others = parser.push(call()[start : start + 9])
    assert first == CallPiece(0, start, name="wetter")
    assert [piece.arguments for piece in others if isinstance(piece, CallPiece)] == [CITY[:9]]


def test_nothing_that_may_become_a_call_is_shown_and_all_else_at_once() -> None:
    parser = CallParser({"wetter"})
    assert parser.push("a <tool") == [Content("a ", 2)]
    assert parser.push("box>") == [Content("<toolbox>", 11)]
    assert parser.push("<") == []
    assert parser.push("b") == [Content("<b", 13)]


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text('a"\\{}<>ß\n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    arguments=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    before=st.text("ab<tol_c \n", max_size=12),
    size=st.integers(1, 9),
    indent=st.none() | st.integers(0, 2),
)
def test_a_call_of_any_arguments_is_read_as_it_was_written(
    arguments: dict[str, Any], before: str, size: int, indent: int | None
) -> None:
    text = json.dumps(arguments, indent=indent, ensure_ascii=False)
    content, calls, complete = read(before + call(text) + "!", size)
    assert (calls, complete) == ([("wetter", text)], 1)
    assert content == (before if before.strip(" \n") else "") + "!"


PARTS = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "uhr", ',
    '"arguments": ',
    "{",
    "}",
    '"',
    "\\",
    "[",
    "]",
    ":",
    "a",
    " ",
]


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=25), sizes=st.lists(st.integers(1, 30), min_size=2, max_size=3))
def test_any_text_gives_the_same_however_it_comes_and_none_of_it_is_lost(parts: list[str], sizes: list[int]) -> None:
    text = "".join(parts)
    results = [read(text, size) for size in sizes]
    assert all(result == results[0] for result in results)
    content, calls, _ = results[0]
    if not calls:
        assert content == text
    remaining = iter(text)
    assert all(character in remaining for character in content), "in order, and nothing invented"
    assert len(re.findall("<tool_call>", text)) >= len(calls)
