"""How a prompt tells of functions, calls and results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leoserve.text.template import ChatTemplate
from leoserve.text.tokenizer import Tokenizer
from leoserve.text.tools import NO_PARAMETERS, Calling, Tool, for_knowing_template, with_tools

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("wetter", "Das Wetter in einer Stadt, größere zuerst.", CITY)
CLOCK = Tool("uhr")


def called(*calls: tuple[str, str, str], content: str = "") -> dict[str, Any]:
    made = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]
    return {"role": "assistant", "content": content, "tool_calls": made}


def result(call: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": text}


def test_the_functions_stand_behind_the_systems_own_words_one_a_line() -> None:
    chat = with_tools(
        [{"role": "system", "content": "Sei kurz."}, {"role": "user", "content": "Hallo"}], [WEATHER, CLOCK]
    )
    assert [message["role"] for message in chat] == ["system", "user"]
    own, _, rest = chat[0]["content"].partition("\n\n")
    assert own == "Sei kurz."
    lines = rest[rest.index("<tools>\n") + 8 : rest.index("\n</tools>")].splitlines()
    assert [json.loads(line)["function"]["name"] for line in lines] == ["wetter", "uhr"]
    assert json.loads(lines[0])["function"]["parameters"] == CITY
    assert "größere" in lines[0]
    assert "<tool_call>" in rest


def test_without_a_system_message_there_is_one_for_the_functions() -> None:
    chat = with_tools([{"role": "user", "content": "Hallo"}], [CLOCK])
    assert [message["role"] for message in chat] == ["system", "user"]
    assert with_tools([{"role": "user", "content": "Hallo"}], []) == [{"role": "user", "content": "Hallo"}]


def test_calls_and_results_are_text_in_the_order_of_the_calls() -> None:
    messages = [
        {"role": "user", "content": "Und?"},
        called(("a", "wetter", '{"city": "Köln"}'), ("b", "uhr", ""), content="Moment."),
        result("b", "12 Uhr"),
        result("a", "Regen"),
        {"role": "user", "content": "Danke"},
    ]
    chat = with_tools(messages, [])
    assert [message["role"] for message in chat] == ["user", "assistant", "user", "user"]
    assert chat[1]["content"] == (
        'Moment.\n<tool_call>\n{"name": "wetter", "arguments": {"city": "Köln"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "uhr", "arguments": {}}\n</tool_call>'
    )
    assert chat[2]["content"] == ("<tool_response>\nRegen\n</tool_response>\n<tool_response>\n12 Uhr\n</tool_response>")
    assert all(set(message) == {"role", "content"} for message in chat)


def test_a_template_that_knows_tools_gets_arguments_as_objects() -> None:
    (message,) = for_knowing_template(
        [called(("a", "wetter", '{"city": "Köln"}'), ("b", "uhr", "kaputt"), ("c", "uhr", ""))]
    )
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [{"city": "Köln"}, "kaputt", {}]


@pytest.mark.parametrize(
    ("source", "knows"), [("{{ messages }}", False), ("{% if tools %}{{ tools | tojson }}{% endif %}", True)]
)
def test_a_template_says_whether_it_knows_tools(folders: dict[str, Path], source: str, knows: bool) -> None:
    tokenizer = Tokenizer.load(folders["llama2"])
    template = ChatTemplate.load(folders["llama2"], source, tokenizer)
    assert template.knows_tools == knows
    assert "tools" not in template.variables, "a client cannot give them as a variable"


def test_control_tokens_in_the_names_of_parameters_stay_text(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["llama2"])
    template = ChatTemplate.load(folders["llama2"], "{{ tools | tojson }}<|im_end|>", tokenizer)
    tools = [Tool("f", "<|im_end|>", {"properties": {"<|im_end|>": {}}}).for_template()]
    prompt = template.render(
        [{"role": "user", "content": ""}],
        add_generation_prompt=False,
        continue_final_message=False,
        extra={"tools": tools},
    )
    assert tokenizer.encode_prompt(prompt).count(tokenizer.token_id("<|im_end|>") or -1) == 1


def test_a_schema_is_closed_unless_it_says_otherwise() -> None:
    assert WEATHER.schema == {**CITY, "additionalProperties": False}
    assert CLOCK.schema == NO_PARAMETERS
    for extra in ({"additionalProperties": {"type": "string"}}, {"anyOf": [CITY]}, {"patternProperties": {"^x": {}}}):
        assert "additionalProperties" not in {**Tool("f", None, CITY | extra).schema} or "additionalProperties" in extra
    assert Tool("f", None, {"$ref": "#/$defs/a"}).schema == {"type": "object", "$ref": "#/$defs/a"}


def test_a_named_function_or_none_beside_another_makes_the_first_call_the_last() -> None:
    for mode, parallel, single in (
        ("auto", True, False),
        ("auto", False, True),
        ("required", True, False),
        ("named", True, True),
    ):
        assert Calling([CLOCK], frozenset(["uhr"]), mode, parallel).single == single  # type: ignore[arg-type]
