"""Functions in chats, through a real server, most of it with OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import openai
import pytest
from pydantic import BaseModel

from leoserve.text.tokenizer import Tokenizer
from leoserve.text.tools import call_text

from .conftest import Running, Start, pieces

QUESTION = {"role": "user", "content": "Wie wird das Wetter?"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ARGUMENTS = '{"city": "Köln 🦁"}'


def tool(name: str = "wetter", **about: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": CITY} | about}


TOOLS = [tool(), tool("uhr", parameters=None)]
NAMED = {"type": "function", "function": {"name": "wetter"}}
KOELN = call_text({"name": "wetter", "arguments": ARGUMENTS})
TIME = call_text({"name": "uhr", "arguments": "{}"})


@pytest.fixture
async def server(start: Start) -> Running:
    """With room for the functions' descriptions in its context."""
    return roomy(await start())


def roomy(server: Running) -> Running:
    assert server.engine.ready is not None
    server.engine.ready = msgspec.structs.replace(server.engine.ready, max_model_len=16384, num_blocks=1024)
    return server


def prompt_of(server: Running, number: int = -1) -> str:
    return server.context.tokenizer.decode(server.engine.requests[number].prompt)


async def choice_of(server: Running, **body: Any) -> dict[str, Any]:
    answer = await server.chat(**{"tools": TOOLS, "messages": [QUESTION]} | body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def calls_of(choice: dict[str, Any]) -> list[tuple[str, str]]:
    calls = choice["message"].get("tool_calls", [])
    assert all(set(call) == {"id", "type", "function"} and call["type"] == "function" for call in calls)
    assert all(call["id"].startswith("call_") for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def accumulated(events: list[Any]) -> dict[int, dict[str, Any]]:
    """By choice, what the deltas add up to. Checks their shape."""
    assert events[-1] == "[DONE]"
    told: dict[int, dict[str, Any]] = {}
    for event in events[:-1]:
        for choice in event["choices"]:
            if choice["index"] not in told:
                assert choice["delta"] == {"role": "assistant", "content": None}
            of = told.setdefault(choice["index"], {"content": None, "calls": [], "tokens": [], "finish_reason": None})
            assert of["finish_reason"] is None, "nothing comes after the end"
            for part in choice["delta"].get("tool_calls", []):
                if part["index"] == len(of["calls"]):
                    assert set(part) == {"index", "id", "type", "function"}
                    of["calls"].append([part["function"]["name"], ""])
                else:
                    assert set(part) == {"index", "function"}
                    assert set(part["function"]) == {"arguments"}
                assert part["index"] == len(of["calls"]) - 1
                of["calls"][-1][1] += part["function"]["arguments"]
            if choice["delta"].get("content"):
                of["content"] = (of["content"] or "") + choice["delta"]["content"]
            of["tokens"] += (choice["logprobs"] or {"content": []})["content"]
            of["finish_reason"] = choice["finish_reason"]
    return told


ANSWERS: list[tuple[str, str | None, list[tuple[str, str]], str]] = [
    ("Regen.", "Regen.", [], "stop"),
    (KOELN, None, [("wetter", ARGUMENTS)], "tool_calls"),
    (KOELN + "\n" + TIME, None, [("wetter", ARGUMENTS), ("uhr", "{}")], "tool_calls"),
    ("Moment. " + KOELN, "Moment. ", [("wetter", ARGUMENTS)], "tool_calls"),
    (KOELN.replace("wetter", "fremd"), KOELN.replace("wetter", "fremd"), [], "stop"),
    ("<tool_call>\n{kaputt", "<tool_call>\n{kaputt", [], "stop"),
]


@pytest.mark.parametrize(("text", "content", "calls", "finish"), ANSWERS)
async def test_calls_are_told_apart_from_text_whole_and_streamed(
    server: Running, tokenizer: Tokenizer, text: str, content: str | None, calls: list[tuple[str, str]], finish: str
) -> None:
    server.says(text)
    options: dict[str, Any] = {"tools": TOOLS, "messages": [QUESTION], "logprobs": True, "n": 2}
    whole = await choice_of(server, **options)
    assert whole["message"]["content"] == content
    assert (calls_of(whole), whole["finish_reason"]) == (calls, finish)
    assert ("tool_calls" in whole["message"]) == bool(calls)
    told = accumulated(await server.events(**options, stream_options={"include_usage": True}))
    assert set(told) == {0, 1}
    for streamed in told.values():
        assert streamed["content"] == content
        assert [tuple(call) for call in streamed["calls"]] == calls
        assert streamed["finish_reason"] == finish
        assert [token["token"] for token in streamed["tokens"]] == [
            tokenizer.token_text(token) for token in pieces(tokenizer, text)
        ], "each token once, those of calls too"
    assert whole["logprobs"]["content"] == told[0]["tokens"]


async def test_arguments_stream_while_they_are_written(server: Running) -> None:
    server.says(KOELN)
    events = await server.events(tools=TOOLS)
    fragments = [
        part["function"]["arguments"]
        for event in events[:-1]
        for part in event["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert "".join(fragments) == ARGUMENTS
    assert len(fragments) > 5


@pytest.mark.parametrize(
    ("choice", "finish", "kind"),
    [
        ("auto", "tool_calls", None),
        (None, "tool_calls", None),
        ("required", "tool_calls", "lark"),
        (NAMED, "stop", "lark"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}, "tool_calls", "lark"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}, "tool_calls", None),
    ],
)
async def test_each_choice_has_its_grammar_and_its_finish_reason(
    server: Running, choice: Any, finish: str, kind: str | None
) -> None:
    server.says(KOELN)
    answer = await choice_of(server, tool_choice=choice)
    assert calls_of(answer) == [("wetter", ARGUMENTS)]
    assert answer["finish_reason"] == finish
    grammar = server.engine.requests[0].params.grammar
    assert (grammar and grammar.kind) == kind
    if grammar is not None:
        assert grammar.param == "tools"
        assert ("uhr" in grammar.source) == (choice == "required")
    assert "uhr" in prompt_of(server), "the model is told of all, whatever it may call"


async def test_only_an_allowed_function_is_called(server: Running) -> None:
    server.says(TIME)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
    answer = await choice_of(server, tool_choice=allowed)
    assert answer["message"]["content"] == TIME
    assert answer["finish_reason"] == "stop"


async def test_none_is_as_if_there_were_no_functions(server: Running) -> None:
    server.says(KOELN)
    for options in ({"tool_choice": "none"}, {"tools": []}, {"tools": None}, {"tools": [], "tool_choice": "auto"}):
        answer = await choice_of(server, **options)
        assert answer["message"] == {"role": "assistant", "content": KOELN, "refusal": None}
        assert server.engine.requests[-1].prompt == server.engine.requests[0].prompt
        assert "wetter" not in prompt_of(server)


async def test_without_parallel_calls_the_first_ends_the_answer(server: Running) -> None:
    server.says(KOELN + "\n" + TIME)
    answer = (await server.chat(tools=TOOLS, parallel_tool_calls=False)).json()
    assert calls_of(answer["choices"][0]) == [("wetter", ARGUMENTS)]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert server.engine.aborts == [(answer["id"], 0)], "the engine writes no further"
    told = accumulated(await server.events(tools=TOOLS, parallel_tool_calls=False))
    assert told[0]["calls"] == [["wetter", ARGUMENTS]]


async def test_an_answer_that_is_cut_off_says_so(server: Running, tokenizer: Tokenizer) -> None:
    server.says(KOELN)
    cut = len(pieces(tokenizer, KOELN[: KOELN.index("city")]))
    early = len(pieces(tokenizer, "<tool_call>\n{"))
    began = await choice_of(server, max_tokens=cut)
    assert calls_of(began) == [("wetter", '{"')]
    assert (began["message"]["content"], began["finish_reason"]) == (None, "length")
    not_begun = await choice_of(server, max_tokens=early)
    assert not_begun["message"]["content"] == "<tool_call>\n{"
    assert not_begun["finish_reason"] == "length"
    assert accumulated(await server.events(tools=TOOLS, max_tokens=cut))[0]["calls"] == [["wetter", '{"']]


async def test_stop_strings_end_text_and_leave_calls_alone(server: Running) -> None:
    server.says("Moment: \n" + KOELN)
    untouched = await choice_of(server, stop=["city", "\n{", "Köln", ": \n<"])
    assert calls_of(untouched) == [("wetter", ARGUMENTS)]
    assert untouched["message"]["content"] == "Moment: \n"
    stopped = await choice_of(server, stop=["ment"])
    assert stopped["message"]["content"] == "Mo"
    assert stopped["finish_reason"] == "stop"
    server.says(KOELN + " fertig.")
    after = await choice_of(server, stop="fertig")
    assert (calls_of(after), after["message"]["content"]) == ([("wetter", ARGUMENTS)], " ")
    assert after["finish_reason"] == "tool_calls"


async def test_a_strict_function_holds_the_models_own_calls_to_its_schema(server: Running) -> None:
    server.says(KOELN)
    await choice_of(server, tools=[tool(strict=True)])
    grammar = server.engine.requests[0].params.grammar
    assert grammar is not None
    assert "lazy" in grammar.source


async def test_a_conversation_with_calls_is_rendered_in_the_models_format(server: Running) -> None:
    server.says(KOELN + "\n" + TIME)
    first = (
        (await server.openai.chat.completions.create(model="leo", messages=[QUESTION], tools=TOOLS)).choices[0].message
    )  # type: ignore[call-overload]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"Ergebnis {n}"} for n, call in enumerate(first.tool_calls)
    ]
    server.says("Es regnet.")
    answer = await server.openai.chat.completions.create(
        model="leo",
        messages=[QUESTION, first, *reversed(results)],
        tools=TOOLS,  # type: ignore[list-item, arg-type]
    )
    assert answer.choices[0].message.content == "Es regnet."
    prompt = prompt_of(server)
    assert f"assistant\n{KOELN}\n{TIME}" in prompt
    expected = "".join(f"<tool_response>\nErgebnis {n}\n</tool_response>\n" for n in range(2))
    assert f"user\n{expected.strip()}" in prompt, "in the order of the calls"


async def test_a_template_that_knows_tools_is_given_them(start: Start) -> None:
    template = (
        "{% for t in tools %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls %}({{ c.function.name }} {{ c.function.arguments.city }}){% endfor %}{% endfor %}"
    )
    server = roomy(await start(chat_template=template))
    call = {"id": "c1", "type": "function", "function": {"name": "wetter", "arguments": ARGUMENTS}}
    messages = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Regen"},
    ]
    await choice_of(server, messages=messages)
    assert prompt_of(server).strip().startswith("[wetter][uhr]user:")
    assert prompt_of(server).endswith("assistant:(wetter Köln 🦁)tool:Regen")


class Wetter(BaseModel):
    city: str
    scale: Literal["C", "F"] = "C"


STRICT = openai.pydantic_function_tool(Wetter)
STRICT_TEXT = call_text({"name": "Wetter", "arguments": '{"city": "Köln", "scale": "F"}'})


async def test_the_sdk_parses_strict_calls_whole_and_streamed(server: Running) -> None:
    server.says(STRICT_TEXT)
    ask: dict[str, Any] = {"model": "leo", "messages": [QUESTION], "tools": [STRICT]}
    for choice in ("auto", "required", {"type": "function", "function": {"name": "Wetter"}}):
        whole = await server.openai.chat.completions.parse(**ask, tool_choice=choice)
        message = whole.choices[0].message
        assert message.content is None
        assert message.tool_calls
        assert message.tool_calls[0].function.parsed_arguments == Wetter(city="Köln", scale="F")
        done = []
        async with server.openai.chat.completions.stream(**ask, tool_choice=choice, logprobs=True) as stream:
            async for event in stream:
                if event.type == "tool_calls.function.arguments.done":
                    done.append((event.index, event.name, event.parsed_arguments))
            final = (await stream.get_final_completion()).choices[0]
        assert done == [(0, "Wetter", Wetter(city="Köln", scale="F"))]
        assert final.message.content is None
        assert final.message.tool_calls
        assert final.message.tool_calls[0].function.parsed_arguments == Wetter(city="Köln", scale="F")
        assert final.logprobs is not None
        assert final.logprobs.content
    back = [QUESTION, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Regen"}]
    server.says("Es regnet.")
    parsed = await server.openai.chat.completions.parse(**ask | {"messages": back})
    assert parsed.choices[0].message.content == "Es regnet."
    async with server.openai.chat.completions.stream(
        **ask | {"messages": [*back[:1], final.message, {**back[2], "tool_call_id": final.message.tool_calls[0].id}]}
    ) as stream:
        assert (await stream.get_final_completion()).choices[0].message.content == "Es regnet."


async def test_the_older_form_is_answered_in_its_own_shape(server: Running) -> None:
    server.says(KOELN)
    functions = [each["function"] for each in TOOLS]
    whole = await choice_of(server, tools=None, functions=functions)
    assert whole["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": {"name": "wetter", "arguments": ARGUMENTS},
    }
    assert whole["finish_reason"] == "function_call"
    named = await choice_of(server, tools=None, functions=functions, function_call={"name": "wetter"})
    assert named["finish_reason"] == "stop"
    forced = server.engine.requests[-1].params.grammar
    assert forced is not None
    assert forced.param == "functions", "where an error of the schema is to be looked for"
    none = await choice_of(server, tools=None, functions=functions, function_call="none")
    assert none["message"]["content"] == KOELN
    name = arguments = ""
    stream = await server.openai.chat.completions.create(
        model="leo",
        messages=[QUESTION],
        functions=functions,
        stream=True,  # type: ignore[call-overload]
    )
    async for chunk in stream:
        if (call := chunk.choices[0].delta.function_call) is not None:
            name += call.name or ""
            arguments += call.arguments or ""
    assert (name, arguments) == ("wetter", ARGUMENTS)
    back = [QUESTION, whole["message"], {"role": "function", "name": "wetter", "content": "Regen"}]
    await choice_of(server, tools=None, functions=functions, messages=back)
    assert f"{KOELN}" in prompt_of(server)
    assert "<tool_response>\nRegen\n</tool_response>" in prompt_of(server)


def called(*ids: str) -> dict[str, Any]:
    calls = [{"id": i, "type": "function", "function": {"name": "wetter", "arguments": "{}"}} for i in ids]
    return {"role": "assistant", "tool_calls": calls}


def result(call: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": "x"}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [tool()] * 2}, "tools[1].function.name"),
    ({"tools": [tool("zwei wörter")]}, "tools[0].function.name"),
    ({"tools": [tool("")]}, "tools[0].function.name"),
    ({"tools": [tool("a" * 65)]}, "tools[0].function.name"),
    ({"tools": [tool(f"f{number}") for number in range(129)]}, "tools"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [tool(parameters={"type": "array"})]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters={"description": "x" * 70_000})]}, "tools[0].function.parameters"),
    ({"tools": [tool(description="x" * 70_000)]}, "tools[0].function.description"),
    ({"tools": [tool(f"f{n}", parameters={"description": "x" * 60_000}) for n in range(5)]}, "tools"),
    ({"tools": [tool(strict="ja")]}, "tools[0].function.strict"),
    ({"tools": [tool(colour="blue")]}, "tools[0].function.colour"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    ({"tools": None, "tool_choice": "auto"}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tools": None, "tool_choice": NAMED}, "tool_choice"),
    ({"tool_choice": "immer"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "fremd"}}}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
    (
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        "tool_choice.allowed_tools.tools",
    ),
    (
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "x"}}]},
            }
        },
        "tool_choice",
    ),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"tools": None, "functions": [{"name": "f"}] * 2}, "functions[1].name"),
    ({"tools": None, "functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
    ({"tools": None, "function_call": "auto"}, "function_call"),
    ({"parallel_tool_calls": "ja"}, "parallel_tool_calls"),
    ({"messages": [QUESTION, result("a")]}, "messages[1].role"),
    ({"messages": [QUESTION, called("a"), result("b")]}, "messages[2].tool_call_id"),
    ({"messages": [QUESTION, called("a"), result("a"), result("a")]}, "messages[3].tool_call_id"),
    ({"messages": [QUESTION, called("a", "b"), result("a")]}, "messages[2].role"),
    ({"messages": [QUESTION, called("a"), QUESTION]}, "messages[1].role"),
    ({"messages": [QUESTION, called("a")]}, "messages[1].role"),
    ({"messages": [QUESTION, called("a", "a"), result("a")]}, "messages[1].tool_calls[1].id"),
    ({"messages": [QUESTION, called("a"), {"role": "tool", "content": "x"}]}, "messages[2].tool_call_id"),
    ({"messages": [QUESTION, called("a"), {"role": "tool", "tool_call_id": "a"}]}, "messages[2].content"),
    ({"messages": [QUESTION | {"tool_calls": called("a")["tool_calls"]}]}, "messages[0].tool_calls"),
    ({"messages": [QUESTION | {"tool_call_id": "a"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].name"),
]


@pytest.mark.parametrize(("body", "param"), BAD)
async def test_what_makes_no_sense_is_a_400_that_names_the_field(
    server: Running, body: dict[str, Any], param: str
) -> None:
    answer = await server.chat(**{"tools": TOOLS, "messages": [QUESTION]} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert not server.engine.requests


async def test_a_message_that_ends_with_calls_cannot_be_continued_but_one_of_text_can(server: Running) -> None:
    messages = [QUESTION, called("a"), result("a"), {"role": "assistant", "content": "Ich sehe nach. "}]
    server.says(KOELN)
    answer = await choice_of(server, messages=messages, continue_final_message=True, tool_choice="required")
    assert calls_of(answer) == [("wetter", ARGUMENTS)]
    assert prompt_of(server).endswith("Ich sehe nach. ")
    old = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    refused = await server.chat(messages=[QUESTION, old], continue_final_message=True)
    assert refused.json()["error"]["param"] == "continue_final_message"


async def test_the_wanted_form_of_text_goes_together_with_calls(server: Running) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    server.says(KOELN)
    await choice_of(server, response_format=schema)
    grammar = server.engine.requests[0].params.grammar
    assert grammar is not None
    assert "content" in grammar.source
    refused = await server.chat(tools=TOOLS, structured_outputs={"grammar": 'start: "a"'})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "structured_outputs.grammar"


async def test_numbers_that_json_does_not_have_are_refused_in_a_schema(server: Running) -> None:
    body = json.dumps({"model": "leo", "messages": [QUESTION], "tools": [tool(parameters={"maximum": 1})]})
    for number in ("NaN", "1e400", "-Infinity"):
        answer = await server.http.post(
            "/v1/chat/completions", content=body.replace('"maximum": 1', f'"maximum": {number}')
        )
        assert answer.status_code == 400, number
