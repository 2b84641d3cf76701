"""What is wrong with a body, in OpenAI's words and codes instead of the validating library's."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from leoserve.api.errors import ApiError, bad_request, shorten
from leoserve.api.protocol.base import BRANCHES

MAX_FAULTS = 5  # that one message names
EITHER = "<text>"  # the branch that whatever is no array is taken for

EXPECTED = {
    "string_type": "a string",
    "string_sub_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "a smaller integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}
BOUNDS = {
    "greater_than": ("below", "min", ">", "gt"),
    "greater_than_equal": ("below", "min", ">=", "ge"),
    "less_than": ("above", "max", "<", "lt"),
    "less_than_equal": ("above", "max", "<=", "le"),
}
LENGTHS = {
    "too_short": ("array", "below", "min"),
    "too_long": ("array", "above", "max"),
    "string_too_short": ("string", "below", "min"),
    "string_too_long": ("string", "above", "max"),
}
ARTICLES = {"array": "an", "object": "an", "string": "a"}


def as_bad_request(error: ValidationError) -> ApiError:
    """400 with the first faults that were found, by the names the client used."""
    faults = error.errors(include_url=False)
    first = faults[0]
    if first["type"] == "json_invalid":
        return bad_request(f"We could not parse the JSON body of your request. {first['msg']}.")
    messages = [told(fault)[0] for fault in faults[:MAX_FAULTS]]
    if len(faults) > MAX_FAULTS:
        messages.append(f"There are {len(faults) - MAX_FAULTS} more.")
    return bad_request(" ".join(messages), field_path(first["loc"]) or None, told(first)[1])


def told(fault: ErrorDetails) -> tuple[str, str]:
    """The message and the code of one fault."""
    kind = fault["type"]
    path = field_path(fault["loc"])
    name = f"'{path}'" if path else "body"
    if kind == "missing":
        return f"Missing required parameter: {name}.", "missing_required_parameter"
    if kind in EXPECTED:
        either = " or an array" if fault["loc"][-1:] == (EITHER,) else ""
        got = kind_of(fault["input"])
        return f"Invalid type for {name}: expected {EXPECTED[kind]}{either}, but got {got} instead.", "invalid_type"
    if kind in BOUNDS:
        what, code = out_of_bounds(fault)
    elif kind in LENGTHS:
        what, code = wrong_length(fault)
    elif kind == "literal_error":
        what = f"{show(fault['input'])} is not supported. Supported values are: {fault['ctx']['expected']}"
        code = "invalid_value"
    elif kind == "string_pattern_mismatch":
        what, code = f"expected a string that matches {fault['ctx']['pattern']}", "invalid_value"
    else:
        what, code = fault["msg"], fault.get("ctx", {}).get("code", "invalid_value")
    return f"Invalid {name}: {what}.", code


def out_of_bounds(fault: ErrorDetails) -> tuple[str, str]:
    side, extreme, sign, key = BOUNDS[fault["type"]]
    number = "integer" if isinstance(fault["ctx"][key], int) else "decimal"  # the field's kind, not that of a 3 for 3.0
    wanted = f"Expected a value {sign} {show(fault['ctx'][key])}, but got {show(fault['input'])} instead"
    return f"{number} {side} {extreme}imum value. {wanted}", f"{number}_{side}_{extreme}_value"


def wrong_length(fault: ErrorDetails) -> tuple[str, str]:
    kind, side, extreme = LENGTHS[fault["type"]]
    if isinstance(fault["input"], dict):
        kind = "object"
    thing = f"{ARTICLES[kind]} {kind}"
    wanted = f"Expected {thing} with {extreme}imum length {fault['ctx'][f'{extreme}_length']}"
    if len(fault["input"]) == 0:
        return f"empty {kind}. {wanted}, but got an empty {kind} instead", f"empty_{kind}"
    got = f"{thing} with length {len(fault['input'])}"
    return f"{kind} too {'short' if extreme == 'min' else 'long'}. {wanted}, but got {got} instead", (
        f"{kind}_{side}_{extreme}_length"
    )


def kind_of(value: Any) -> str:
    """What a value is in JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number" if abs(value) < float("inf") else show(value)
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def show(value: Any) -> str:
    return f"'{shorten(value)}'" if isinstance(value, str) else shorten(value)


def field_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in BRANCHES:
            path += f".{shorten(part)}" if path else shorten(part)
    return path
