"""Forms that an answer may have to have, each with what tells whether a text has it, without the server's engine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
from hypothesis import strategies as st

Json = Any
Accepts = Callable[[str], bool]

LETTERS = ["a", "b", "ä", "1", " ", "-", "\\.", "[a-d]", "[^x]", "\\d", "(?:ja|nein)", "ß", "🦁", "\\n"]
REGEXES = st.recursive(
    st.sampled_from(LETTERS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "(" + "|".join(parts) + ")"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{0,3}", "{1,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


def nested(text: str) -> bool:
    """Brackets around nothing, at any depth."""
    half = len(text) // 2
    return text == "(" * half + ")" * half


def matches(pattern: str) -> Accepts:
    return lambda text: re.fullmatch(pattern, text) is not None


GRAMMARS: dict[str, Accepts] = {
    'start: "(" start ")" | ""': nested,
    'root ::= "(" root ")" | ""': nested,
    'start: WORD (", " WORD){0,2}\nWORD: /[a-zäöü]{1,5}/': matches("[a-zäöü]{1,5}(, [a-zäöü]{1,5}){0,2}"),
    'root ::= ("ja" | "nein") [.!]?': matches("(ja|nein)[.!]?"),
    'start: A B? | B\nA: "<|im_end|>"\nB: "ü"': matches(r"<\|im_end\|>ü?|ü"),
    'start: "a" start | "b"': matches("a*b"),
    "start: /(?s:.*)/": lambda text: True,
}

NAMES = st.sampled_from(["name", "größe", "a b", "$ref", "x", '"', "\\", "type"])
CONSTANTS = st.sampled_from([None, True, 0, -1, 1.5, "", "ü", "<|im_end|>", "a\nb", '"', [], {}, ["x"], {"a": 1}])
STRINGS = st.fixed_dictionaries(
    {"type": st.just("string")},
    optional={
        "maxLength": st.integers(0, 5),
        "minLength": st.integers(0, 3),
        "pattern": st.sampled_from(["^[a-c]{1,3}$", "^\\d{4}$", "^(ä|ö)+$", "x"]),
        "format": st.sampled_from(["date", "time", "uuid", "ipv4", "email", "date-time", "duration"]),
    },
)
NUMBERS = st.fixed_dictionaries(
    {"type": st.sampled_from(["integer", "number"])},
    optional={
        "minimum": st.sampled_from([-10, 0, 1, 1.5]),
        "maximum": st.sampled_from([1, 5, 99, 2.5]),
        "exclusiveMinimum": st.sampled_from([-1, 0, 0.5]),
        "exclusiveMaximum": st.sampled_from([2, 7, 1e3]),
        "multipleOf": st.sampled_from([2, 3, 0.5]),
    },
)
LEAVES = st.one_of(
    STRINGS,
    NUMBERS,
    st.sampled_from([{}, True, {"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"], "maxLength": 3}]),
    st.lists(CONSTANTS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    CONSTANTS.map(lambda value: {"const": value}),
    st.sampled_from([{"$ref": "#/$defs/leaf"}, {"$ref": "#"}, {"$ref": "#/$defs/list"}]),
)


def objects_of(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    @st.composite
    def build(draw: st.DrawFn) -> Json:
        properties = draw(st.dictionaries(NAMES, inner, max_size=3))
        schema: dict[str, Json] = {"type": "object", "properties": properties}
        if properties:
            schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
        if draw(st.booleans()):
            schema["additionalProperties"] = draw(st.sampled_from([False, False, True]) | inner)
        if not draw(st.integers(0, 4)):
            schema[draw(st.sampled_from(["minProperties", "maxProperties"]))] = draw(st.integers(0, 2))
        return schema

    return build()


def arrays_of(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries(
        {"type": st.just("array"), "maxItems": st.integers(0, 3)},
        optional={
            "items": inner,
            "minItems": st.integers(0, 2),
            "prefixItems": st.lists(inner, max_size=2),
            "uniqueItems": st.booleans(),
        },
    )


def compositions_of(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return st.builds(
        lambda word, parts: {word: parts},
        st.sampled_from(["anyOf", "oneOf", "allOf"]),
        st.lists(inner, min_size=1, max_size=3),
    )


SCHEMAS = st.recursive(
    LEAVES, lambda inner: objects_of(inner) | arrays_of(inner) | compositions_of(inner), max_leaves=5
)


def rooted(schema: Json) -> dict[str, Json]:
    """A whole schema, with what its references point to."""
    whole = schema if isinstance(schema, dict) else {"anyOf": [schema]}
    leaf = {"enum": ["Köln", 7]}
    looped = {"type": "array", "items": {"$ref": "#/$defs/list"}, "maxItems": 2}
    return {**whole, "$defs": {"leaf": leaf, "list": looped}}


ROOTS = SCHEMAS.map(rooted)
PARAMETERS = objects_of(SCHEMAS).map(rooted)


def valid(schema: Json, value: Json) -> bool:
    """Whether a JSON value is as a schema says, formats included."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    return bool(validator.is_valid(value))


def follows(schema: Json) -> Accepts:
    def accepts(text: str) -> bool:
        return valid(schema, json.loads(text))

    return accepts


def form_of(body: dict[str, Json]) -> Accepts | None:
    """What tells whether a whole text is as `body` wants it; None where any text is."""
    wanted = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_object":
        return follows({"type": "object"})
    if wanted.get("type") == "json_schema":
        named = wanted.get("json_schema") or wanted
        return follows({"type": "object"} if named.get("schema") is None else named["schema"])
    its = {name: value for name, value in (body.get("structured_outputs") or {}).items() if value is not None}
    if its.get("regex") is not None:
        return matches(its["regex"])
    if its.get("choice") is not None:
        return its["choice"].__contains__
    if its.get("grammar") is not None:
        return GRAMMARS.get(its["grammar"], lambda text: True)
    if its.get("json") is not None:
        return follows(json.loads(its["json"]) if isinstance(its["json"], str) else its["json"])
    return follows({"type": "object"}) if its.get("json_object") else None
