"""From the fields that say what form an answer must have to the grammar that the engine enforces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from leoserve.api.errors import bad_request
from leoserve.api.protocol.structured import ResponseFormat, StructuredFields, StructuredOutputs
from leoserve.engine.request import Grammar

MAX_SCHEMA = 1 << 18  # characters of a JSON schema
MAX_DEPTH = 64  # of objects and lists within each other in a schema
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def grammar_of(body: StructuredFields) -> Grammar | None:
    """What `response_format` or `structured_outputs` ask for; None for free text. Raises ApiError."""
    by_format = of_response_format(body.response_format)
    by_structure = of_structured_outputs(body.structured_outputs)
    if by_format is not None and by_structure is not None:
        raise bad_request("'structured_outputs' and 'response_format' exclude each other.", "structured_outputs")
    return by_format or by_structure


def of_response_format(wanted: ResponseFormat | None, param: str = "response_format") -> Grammar | None:
    """`param` is the field's name for errors. Raises ApiError."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return of_schema(ANY_OBJECT, param)
    if wanted.json_schema is None:
        raise bad_request(f"Missing required parameter: '{param}.json_schema'.", f"{param}.json_schema")
    schema = wanted.json_schema.json_schema
    return of_schema(ANY_OBJECT if schema is None else schema, f"{param}.json_schema.schema")


def of_structured_outputs(wanted: StructuredOutputs | None) -> Grammar | None:
    """Raises ApiError."""
    if wanted is None:
        return None
    given = [name for name in ("json_schema", "regex", "choice", "grammar") if getattr(wanted, name) is not None]
    given += ["json_object"] if wanted.json_object else []
    if len(given) != 1:
        message = "Invalid 'structured_outputs': Give exactly one of json, json_object, regex, choice and grammar."
        raise bad_request(message, "structured_outputs")
    if wanted.regex is not None:
        return Grammar("regex", wanted.regex, "structured_outputs.regex")
    if wanted.choice is not None:
        choices = " | ".join(lark_text(choice) for choice in wanted.choice)
        return Grammar("lark", f"start: {choices}", "structured_outputs.choice")
    if wanted.grammar is not None:
        return Grammar("grammar", wanted.grammar, "structured_outputs.grammar")
    schema = wanted.json_schema
    if isinstance(schema, str):
        schema = parsed(schema, "structured_outputs.json")
    return of_schema(ANY_OBJECT if schema is None else schema, "structured_outputs.json")


def of_schema(schema: Mapping[str, Any], param: str) -> Grammar:
    """The grammar of a JSON schema. Raises ApiError for one that is too large or too deep to look at."""
    if depth(schema) > MAX_DEPTH:
        raise bad_request(f"Invalid '{param}': A schema can be at most {MAX_DEPTH} levels deep.", param)
    source = json.dumps(schema)
    if len(source) > MAX_SCHEMA:
        raise bad_request(f"Invalid '{param}': A schema can have at most {MAX_SCHEMA} characters.", param)
    return Grammar("json_schema", source, param)


def parsed(text: str, param: str) -> dict[str, Any]:
    """The object that `text` spells. Raises ApiError."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise bad_request(f"Invalid '{param}': The text is not a JSON object.", param)
    return schema


def depth(value: Any) -> int:
    """How many objects and lists are within each other; looks no deeper than is allowed."""
    level, found = [value], 0
    while found <= MAX_DEPTH and (level := [each for each in level if isinstance(each, dict | list)]):
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
        found += 1
    return found


def lark_text(text: str) -> str:
    """A literal of a grammar."""
    return json.dumps(text)
