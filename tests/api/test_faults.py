"""Faults of a body are told in OpenAI's words, with its codes, and in none of the validating library's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.completions import CompletionRequest
from leoserve.api.protocol.faults import as_bad_request

CHAT = {"model": "leo", "messages": [{"role": "user", "content": "Hallo"}]}


def error_of(given: str | dict[str, Any], model: Any = ChatRequest) -> tuple[str, str | None, str | None]:
    """Message, param and code."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(given if isinstance(given, str) else json.dumps(given))
    error = as_bad_request(caught.value)
    for word in ("Input should", "after validation", "valid string", "Field required", "pydantic", "instance of"):
        assert word not in error.message
    assert error.message.endswith(".")
    return error.message, error.param, error.code


@pytest.mark.parametrize(
    ("field", "value", "message", "code"),
    [
        ("temperature", "heiß", "expected a number, but got a string instead", "invalid_type"),
        (
            "temperature",
            2.5,
            "decimal above maximum value. Expected a value <= 2.0, but got 2.5",
            "decimal_above_max_value",
        ),
        ("temperature", 3, "decimal above maximum value", "decimal_above_max_value"),
        ("n", 0, "integer below minimum value. Expected a value >= 1, but got 0 instead", "integer_below_min_value"),
        ("n", 1.5, "expected an integer, but got a decimal number instead", "invalid_type"),
        ("n", True, "expected an integer, but got a boolean instead", "invalid_type"),
        ("seed", 2**63, "above maximum value. Expected a value < 9223372036854775808", "integer_above_max_value"),
        ("n", 10**30, "integer above maximum value", "integer_above_max_value"),
        ("stream", 1, "expected a boolean, but got an integer instead", "invalid_type"),
        ("messages", [], "empty array. Expected an array with minimum length 1, but got an empty array", "empty_array"),
        ("messages", "Hallo", "expected an array, but got a string instead", "invalid_type"),
        ("messages", None, "expected an array, but got null instead", "invalid_type"),
        ("messages", [5], "expected an object, but got an integer instead", "invalid_type"),
        (
            "stop",
            [""] * 5,
            "array too long. Expected an array with maximum length 4, but got an array with length 5",
            "array_above_max_length",
        ),
        ("stop", "", "empty string. Expected a string with minimum length 1, but got an empty string", "empty_string"),
        ("stop", "a" * 1025, "but got a string with length 1025 instead", "string_above_max_length"),
        ("stop", 7, "expected a string or an array, but got an integer instead", "invalid_type"),
        ("logit_bias", [1], "expected an object, but got an array instead", "invalid_type"),
        ("logit_bias", {str(i): 1 for i in range(4097)}, "object too long", "object_above_max_length"),
        ("service_tier", "gold", "'gold' is not supported. Supported values are: 'auto', 'default'", "invalid_value"),
        ("audio", {"voice": "x"}, "Invalid 'audio': this server does not support it.", "unsupported_parameter"),
        ("modalities", ["audio"], 'accepted: null, ["text"].', "unsupported_value"),
    ],
)  # fmt: skip
def test_a_fault_says_what_was_expected_and_what_came(field: str, value: Any, message: str, code: str) -> None:
    told, param, its_code = error_of(CHAT | {field: value})
    assert message in told
    assert f"'{field}" in told
    assert (param or "").startswith(field)
    assert its_code == code


def test_what_is_missing_is_named() -> None:
    assert error_of({"model": "leo"}) == (
        "Missing required parameter: 'messages'.",
        "messages",
        "missing_required_parameter",
    )
    assert error_of({"messages": [{}]})[0] == (
        "Missing required parameter: 'model'. Missing required parameter: 'messages[0].role'."
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", "We could not parse the JSON body of your request. Invalid JSON: EOF"),
        ("[]", "Invalid type for body: expected an object, but got an array instead."),
        ('"x"', "Invalid type for body: expected an object, but got a string instead."),
        ('{"model": "leo", "messages": [], "temperature": NaN}', "expected a finite number, but got nan instead"),
        ('{"model": "leo", "messages": [], "temperature": -1e400}', "expected a finite number, but got -inf instead"),
    ],
)
def test_what_is_no_object_or_no_number_is_told_as_such(raw: str, message: str) -> None:
    assert message in error_of(raw)[0]


def test_where_several_forms_are_possible_the_one_that_was_meant_is_judged() -> None:
    for prompt, param, message in (
        (["a", 1], "prompt[1]", "expected a string, but got an integer"),
        ([1, "a"], "prompt[1]", "expected an integer, but got a string"),
        ([[1], [None]], "prompt[1][0]", "expected an integer, but got null"),
        ({}, "prompt", "expected a string or an array, but got an object"),
    ):
        told, its_param, _ = error_of({"model": "leo", "prompt": prompt}, CompletionRequest)
        assert its_param == param
        assert message in told


def test_many_faults_are_counted_and_long_values_shortened() -> None:
    told = error_of(CHAT | {"messages": [{"role": "x" * 10_000, "content": "a"}], "stop_token_ids": [-1] * 100})[0]
    assert "There are 96 more." in told
    assert len(told) < 1200
