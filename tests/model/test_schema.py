"""What schemas become before the grammar engine takes them, and which are refused."""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leoserve.model.patterns import DATE, DATE_TIME, TIME, other_than
from leoserve.model.schema import SchemaError, prepared

INTEGER = {"type": "integer"}


def test_a_schema_is_not_changed_but_copied() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "date"}}}
    before = json.dumps(schema)
    assert prepared(schema) is not schema
    assert json.dumps(schema) == before


@given(st.dates())
def test_every_date_is_a_date(day: date) -> None:
    assert re.fullmatch(DATE, day.isoformat())
    assert re.fullmatch(DATE_TIME, f"{day.isoformat()}T23:59:59Z")


@given(st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32))
def test_only_a_date_is_a_date(year: int, month: int, day: int) -> None:
    text = f"{year:04}-{month:02}-{day:02}"
    try:
        date.fromisoformat(text)
    except ValueError:
        assert not re.fullmatch(DATE, text)
    else:
        assert re.fullmatch(DATE, text)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("08:30:00Z", True),
        ("23:59:59.5+02:00", True),
        ("24:00:00Z", False),
        ("08:30:00", False),
        ("08:60:00Z", False),
        ("08:30:00+24:00", False),
    ],
)
def test_times(text: str, good: bool) -> None:
    assert bool(re.fullmatch(TIME, text)) == good


@given(st.lists(st.text(max_size=6), max_size=8, unique=True), st.text(max_size=7), st.data())
def test_other_names_are_all_but_the_declared(names: list[str], other: str, data: st.DataObject) -> None:
    pattern = other_than(names)
    assert pattern is not None
    compiled = re.compile(re.sub(r"\\x\{([0-9a-f]+)\}", lambda found: re.escape(chr(int(found[1], 16))), pattern))
    assert all(compiled.fullmatch(name) is None for name in names)
    near = data.draw(st.sampled_from(names)) + other if names else other
    for name in (other, near, other[:-1]):
        assert (compiled.fullmatch(name) is not None) == (name not in names)


def test_names_that_are_too_long_are_left_out_by_no_pattern() -> None:
    assert other_than(["x" * 201]) is None
    assert other_than(["y" * 150 + str(number) for number in range(200)]) is None


@pytest.mark.parametrize(
    ("schema", "same_as"),
    [
        ({"$ref": "#/$defs/Größe[int]"}, {"$ref": "#/$defs/Gr%C3%B6%C3%9Fe%5Bint%5D"}),
        ({"$ref": "#/$defs/Gr%C3%B6%C3%9Fe"}, {"$ref": "#/$defs/Gr%C3%B6%C3%9Fe"}),
        ({"$ref": "https://example.com/x"}, {"$ref": "https://example.com/x"}),
        ({"type": "string", "x-guidance": {"lenient": True}}, {"type": "string"}),
        ({"type": "string", "format": "password"}, {"type": "string"}),
        ({"type": "integer", "format": "int32"}, {"type": "integer"}),
        ({"type": ["string", "null"], "format": "time"}, {"type": ["string", "null"], "pattern": TIME}),
        ({"type": "string", "format": "hostname"}, {"type": "string", "format": "hostname", "maxLength": 253}),
        ({"format": "hostname", "maxLength": 9}, {"format": "hostname", "maxLength": 9}),
        ({"type": "string", "format": "kfz"}, {"type": "string", "format": "kfz"}),
        (
            {"type": "string", "pattern": "^2", "format": "date"},
            {"type": "string", "pattern": "^2", "allOf": [{"pattern": DATE}]},
        ),
        (
            {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INTEGER},
            {"properties": {"a": INTEGER, "b": INTEGER}, "additionalProperties": False},
        ),
        (
            {"propertyNames": {"pattern": "^x"}, "additionalProperties": INTEGER},
            {"patternProperties": {"^x": INTEGER}, "additionalProperties": False},
        ),
        ({"propertyNames": {"type": "string"}}, {}),
        ({"minProperties": 1, "required": ["a"], "additionalProperties": False}, {"required": ["a"]}),
        (
            {"patternProperties": {"^x": INTEGER}, "additionalProperties": True},
            {"patternProperties": {"^x": INTEGER}, "additionalProperties": False},
        ),
        (
            {"enum": [{"format": "date", "x-guidance": 1, "$ref": "#/ä"}]},
            {"enum": [{"format": "date", "x-guidance": 1, "$ref": "#/ä"}]},
        ),
    ],
)
def test_what_the_engine_does_not_know_is_told_in_other_words(schema: Any, same_as: Any) -> None:
    found = prepared(schema)
    assert {key: found[key] for key in same_as} == same_as
    assert not found.keys() - same_as.keys() - {"additionalProperties"}


def test_further_properties_have_names_that_are_not_declared() -> None:
    found = prepared({"properties": {"a": INTEGER}, "required": ["b"], "additionalProperties": {"type": "string"}})
    assert found["properties"] == {"a": INTEGER, "b": {"type": "string"}}
    assert found["patternProperties"] == {other_than(["a", "b"]): {"type": "string"}}
    assert found["additionalProperties"] is False


def test_an_object_has_the_properties_it_declares_and_no_others_unless_it_says_so() -> None:
    declared = {"properties": {"a": INTEGER}, "required": ["a"]}
    assert prepared(declared) == declared | {"additionalProperties": False}
    assert prepared({"type": "object"}) == {"type": "object"}, "which declares none"
    assert prepared({"properties": {}, "required": ["a"]})["patternProperties"], "and of which one is required"
    assert prepared(declared | {"additionalProperties": True})["patternProperties"]


def test_where_schemas_are_merged_names_are_left_alone() -> None:
    parts = [{"properties": {"a": INTEGER}}, {"properties": {"b": INTEGER}}]
    assert prepared({"allOf": parts}) == {"allOf": parts}


def test_schemas_that_only_a_reference_leads_to_are_prepared_too() -> None:
    found = prepared({"x": {"a": {"format": "date"}}, "$ref": "#/x/a"})
    assert found["x"]["a"] == {"pattern": DATE}


ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
CHAIN = {f"d{number}": {"$ref": f"#/$defs/d{number - 1}"} for number in range(200, 0, -1)}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (ENDLESS, "no finite value"),
        ({"$ref": "#"}, "no finite value"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no finite value"),
        ({"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, "no finite value"),
        ({"allOf": [{"type": "string"}, ENDLESS]}, "no finite value"),
        ({"anyOf": [False, {"$ref": "#"}]}, "no finite value"),
        ({"enum": []}, None),
        ({"minProperties": 2}, "#: 'minProperties' above 1"),
        ({"items": {"type": "integer", "multipleOf": 20_001}}, "#/items: 'multipleOf' can be at most 20000"),
        ({"multipleOf": 0.1234567}, "'multipleOf'"),
        ({"properties": {f"p{number}": True for number in range(1001)}}, "'properties' can have at most 1000"),
        ({"patternProperties": {f"p{number}": True for number in range(65)}}, "'patternProperties'"),
        ({"anyOf": [{} for _ in range(20_001)]}, "more than 20000 schemas"),
        ({"$defs": {**dict(reversed(CHAIN.items())), "d0": INTEGER}, "$ref": "#/$defs/d200"}, None),
        (5, "a schema is an object"),
        ([], "a schema is an object"),
    ],
)
def test_what_cannot_be_followed_is_refused_and_said_where(schema: Any, said: str | None) -> None:
    if said is None:
        prepared(schema)
        return
    with pytest.raises(SchemaError, match=re.escape(said)):
        prepared(schema)


def test_a_long_chain_of_references_is_followed_in_whatever_order_it_stands() -> None:
    order = [(number * 1237) % 3000 for number in range(3000)]  # each once
    chain = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in order}
    prepared({"$defs": {**chain, "d3000": INTEGER}, "$ref": "#/$defs/d0"})
    with pytest.raises(SchemaError, match="no finite value"):
        prepared({"$defs": {**chain, "d3000": {"$ref": "#/$defs/d0"}}, "$ref": "#/$defs/d0"})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": ["array", "null"], "items": {"$ref": "#"}, "minItems": 2},
        True,
        {},
    ],
)
def test_a_recursion_with_a_way_out_is_taken(schema: Any) -> None:
    prepared(schema)
