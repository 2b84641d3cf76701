"""Calls as a grammar: what holds a model to the format of `text/tools.py` and to its functions' parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from leoserve.model.step import Grammar
from leoserve.text.tools import CALL, CALL_END, Calling, Tool

MAX_CALLS = 32  # of one forced answer; a model that repeats itself must come to an end
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

# Between values exactly what Python's JSON has, and so most of what models have read: no room for endless white space.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class CannotCombine(ValueError):
    """The wanted form of the text does not go together with calls."""


def call_grammar(calling: Calling, content: Grammar | None) -> Grammar | None:
    """What an answer must be, given the functions it may call and what text beside calls must be.

    None: anything goes, as for "auto" without a strict function. Raises CannotCombine.
    """
    tools = calling.callable
    if calling.forced:
        return _grammar(f"start: {_calls(calling)}", [_call(tool, lenient=not tool.strict) for tool in tools])
    if content is not None:
        start = f"start: content | {_calls(calling)}\ncontent: {_content(content)}"
    elif any(tool.strict for tool in tools):
        # Free text that ends as soon as it has the tag of a call; from there on only a call goes on.
        parts = "rest | text call_rest" if calling.single else "(text call_rest)* rest"
        start = f'start: {parts}\ntext[lazy]: TEXT "{CALL}"\nrest: TEXT\nTEXT: /(?s:.*)/'
    else:
        return None
    calls = [_call(tool) if tool.strict else _call(Tool(tool.name, parameters=ANY_OBJECT)) for tool in tools]
    return _grammar(start, calls)


def _calls(calling: Calling) -> str:
    return "call" if calling.single else f'call ("\\n" call){{0,{MAX_CALLS - 1}}}'


def _call(tool: Tool, *, lenient: bool = False) -> tuple[str, str]:
    """The text before the arguments, and their schema. `lenient`: what no grammar can express of it is let go."""
    schema: dict[str, Any] = {**(tool.parameters if tool.parameters is ANY_OBJECT else tool.schema)}
    schema["x-guidance"] = {**_SPACING, "lenient": True} if lenient else _SPACING
    return f'\n{{"name": "{tool.name}", "arguments": ', json.dumps(schema)


def _grammar(start: str, calls: Sequence[tuple[str, str]]) -> Grammar:
    lines = [start, f'call: "{CALL}" call_rest']
    lines.append("call_rest: " + " | ".join(f"call_{number}" for number in range(len(calls))))
    end = json.dumps("}\n" + CALL_END)
    for number, (head, schema) in enumerate(calls):
        lines.append(f"call_{number}: {json.dumps(head)} arguments_{number} {end}")
        lines.append(f"arguments_{number}: %json {schema}")
    return Grammar("lark", "\n".join(lines) + "\n", "tools")


def _content(content: Grammar) -> str:
    match content.kind:
        case "json_schema":
            schema = json.loads(content.source)
            return f"%json {json.dumps({**schema, 'x-guidance': _SPACING})}"
        case "regex":
            return f"/(?:{_slashes_escaped(content.source)})/"
        case _:
            raise CannotCombine("A grammar for the text cannot be combined with tools that may be called.")


def _slashes_escaped(regex: str) -> str:
    """The regular expression as it can stand between slashes, on one line."""
    escaped = []
    characters = iter(regex)
    for character in characters:
        if character == "\\":
            character += next(characters, "")
        escaped.append({"/": "\\/", "\n": "\\n", "\\\n": "\\n"}.get(character, character))
    return "".join(escaped)
