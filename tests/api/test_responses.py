"""POST /v1/responses, through a real server, read by OpenAI's own SDK and checked against its own types."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from leoserve.engine.client import EngineDied, EngineRefused
from tests.conftest import PATIENCE

from .conftest import Running, Start
from .test_answer import leave
from .test_errors import error_of

PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {
    "type": "function",
    "name": "wetter",
    "description": "Das Wetter an einem Ort",
    "parameters": {"type": "object", "properties": {"ort": {"type": "string"}}, "required": ["ort"]},
}
CALL = '<tool_call>\n{"name": "wetter", "arguments": {"ort": "Köln"}}\n</tool_call>'


@pytest.fixture
def roomy(server: Running) -> Running:
    """A server whose context holds what functions add to a prompt."""
    assert server.engine.ready is not None
    server.engine.ready = msgspec.structs.replace(server.engine.ready, max_model_len=2048, num_blocks=256)
    return server


async def respond(server: Running, **body: Any) -> dict[str, Any]:
    answer = await server.http.post(PATH, json={"model": "leo", "input": "Hallo"} | body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    Response.model_validate(told)  # strict, where the SDK itself takes anything
    return told


async def stream(server: Running, **body: Any) -> list[dict[str, Any]]:
    """All events, after checking what all streams have in common."""
    answer = await server.http.post(PATH, json={"model": "leo", "input": "Hallo", "stream": True} | body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for number, text in enumerate(answer.text.removesuffix("\n\n").split("\n\n")):
        kind, data = text.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_python(event)
        events.append(event)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert all(event["response"]["status"] == "in_progress" for event in events[:2])
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types in order, repeated deltas once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for number, name in enumerate(names) if number == 0 or name != names[number - 1]]


def timeless(response: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two equal answers."""
    text = json.dumps({**response, "created_at": 0, "completed_at": 0})
    told: dict[str, Any] = json.loads(text)
    told["id"] = ""
    for item in told["output"]:
        item["id"] = item["call_id"] = ""
    return told


def prompt(server: Running) -> str:
    return server.context.tokenizer.decode(server.engine.requests[-1].prompt, skip_special_tokens=False)


async def test_a_response_has_every_field_of_openais_shape(server: Running) -> None:
    server.engine.cached = 16
    told = await respond(server, metadata={"a": "b"}, instructions="Kurz.", max_output_tokens=9, store=True)
    assert told["id"].startswith("resp_")
    (item,) = told["output"]
    assert item["id"].startswith("msg_")
    part = {"type": "output_text", "text": "Paris.", "annotations": [], "logprobs": []}
    assert {**item, "id": ""} == {
        "id": "",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    assert told["usage"] == {
        "input_tokens": len(server.engine.requests[0].prompt),
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(server.engine.requests[0].prompt) + 4,
    }
    assert (told["status"], told["error"], told["incomplete_details"]) == ("completed", None, None)
    assert (told["metadata"], told["instructions"], told["max_output_tokens"]) == ({"a": "b"}, "Kurz.", 9)
    assert told["store"] is False, "nothing is kept, whatever was asked"
    assert told["created_at"] <= told["completed_at"]


async def test_a_stream_has_every_event_in_order_and_no_done(server: Running) -> None:
    events = await stream(server)
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(event["delta"] for event in events if event["type"].endswith("delta")) == "Paris."
    assert events[-1]["response"]["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("options", [{}, {"max_output_tokens": 2}, {"tools": [WEATHER]}, {"top_logprobs": 2}])
@pytest.mark.parametrize("text", ["Grüße aus Köln 🦁", "", CALL, f"Moment.\n{CALL}", f"{CALL}\n{CALL}\nDas war alles."])
async def test_a_stream_ends_in_the_response_that_is_sent_whole(
    roomy: Running, text: str, options: dict[str, Any]
) -> None:
    roomy.says(text)
    whole = await respond(roomy, **options)
    events = await stream(roomy, **options)
    assert timeless(events[-1]["response"]) == timeless(whole)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    begun = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    assert begun == [item["id"] for item in done]


async def test_an_answer_that_the_limit_cut_is_incomplete(server: Running) -> None:
    for told in (
        await respond(server, max_output_tokens=2),
        (await stream(server, max_output_tokens=2))[-1]["response"],
    ):
        assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert told["completed_at"] is None
        assert told["output"][0]["status"] == "incomplete"
        assert told["output"][0]["content"][0]["text"] == "Paris"
    assert (await stream(server, max_output_tokens=2))[-1]["type"] == "response.incomplete"


async def test_every_form_of_input_becomes_the_prompt_of_the_same_chat(server: Running) -> None:
    chat = [{"role": "system", "content": "Kurz."}, {"role": "user", "content": "Hallo"}]
    await server.chat(messages=chat)
    expected = prompt(server)
    part = {"type": "input_text", "text": "Hallo", "prompt_cache_breakpoint": {"mode": "explicit"}}
    forms: list[dict[str, Any]] = [
        {"instructions": "Kurz.", "input": "Hallo"},
        {"instructions": "Kurz.", "input": [{"role": "user", "content": "Hallo"}]},
        {"input": [{"role": "developer", "content": "Kurz."}, {"type": "message", "role": "user", "content": [part]}]},
        {"input": [*chat, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}]},
        {"input": [chat[0], chat[1] | {"id": "msg_1", "status": "completed", "phase": None}]},
    ]
    for form in forms:
        await respond(server, **form)
        assert prompt(server) == expected, form


async def test_calls_and_results_become_the_prompt_of_the_same_chat(roomy: Running) -> None:
    arguments = '{"ort": "Köln"}'
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": "wetter", "arguments": arguments}} for n in "ab"
    ]
    tool = {key: WEATHER[key] for key in ("name", "description", "parameters")}
    await roomy.chat(
        messages=[
            {"role": "user", "content": "Und?"},
            {"role": "assistant", "content": "Moment.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_b", "content": "Regen"},
            {"role": "tool", "tool_call_id": "call_a", "content": "Sonne\nWind"},
        ],
        tools=[{"type": "function", "function": tool}],
    )
    expected = prompt(roomy)
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "Und?"},
        {"id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "Moment."}]},
        *(
            {"type": "function_call", "id": f"fc_{n}", "call_id": f"call_{n}", "name": "wetter", "arguments": arguments}
            for n in "ab"
        ),
        {"type": "function_call_output", "call_id": "call_b", "output": "Regen"},
        {
            "type": "function_call_output",
            "call_id": "call_a",
            "output": [{"type": "input_text", "text": "Sonne"}, {"type": "input_text", "text": "Wind"}],
        },
    ]
    await respond(roomy, input=items, tools=[WEATHER])
    assert prompt(roomy) == expected
    assert "Regen" in expected


async def test_the_sdk_streams_parses_and_sends_back_what_it_got(server: Running) -> None:
    class Stadt(BaseModel):
        name: str

    server.says('{"name": "Köln"}')
    parsed = await server.openai.responses.parse(model="leo", input="Hallo", text_format=Stadt)
    assert parsed.output_parsed == Stadt(name="Köln")
    grammar = server.engine.requests[-1].params.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.param) == ("json_schema", "text.format.schema")
    assert json.loads(grammar.source)["properties"].keys() == {"name"}
    async with server.openai.responses.stream(model="leo", input="Hallo", text_format=Stadt) as events:
        texts = [event.delta async for event in events if event.type == "response.output_text.delta"]
        final = await events.get_final_response()
    assert "".join(texts) == final.output_text == '{"name": "Köln"}'
    assert final.output_parsed == Stadt(name="Köln")
    again = [{"role": "user", "content": "Hallo"}, *parsed.output, {"role": "user", "content": "Und?"}]
    assert (await server.openai.responses.create(model="leo", input=again)).output_text  # type: ignore[arg-type]
    assert '{"name": "Köln"}' in prompt(server)


async def test_the_sdk_reads_calls_and_sends_back_their_results(roomy: Running) -> None:
    class Wetter(BaseModel):
        ort: str

    roomy.says(CALL)
    tool = openai.pydantic_function_tool(Wetter, name="wetter")["function"]
    ask: dict[str, Any] = {"model": "leo", "input": "Wetter?", "tools": [{"type": "function", **tool}]}
    whole = await roomy.openai.responses.parse(**ask, tool_choice="required")
    (call,) = whole.output
    assert call.type == "function_call"
    assert call.call_id.startswith("call_")
    assert json.loads(call.arguments) == {"ort": "Köln"} == call.parsed_arguments
    async with roomy.openai.responses.stream(**ask) as events:
        snapshots = [one.snapshot async for one in events if one.type == "response.function_call_arguments.delta"]
        final = await events.get_final_response()
    assert snapshots[-1] == '{"ort": "Köln"}' == final.output[0].arguments  # type: ignore[union-attr]
    roomy.says("Sonne.")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sonne"}
    ask["input"] = [{"role": "user", "content": "Wetter?"}, *whole.output, result]
    assert (await roomy.openai.responses.create(**ask)).output_text == "Sonne."


async def test_calls_have_their_events(roomy: Running) -> None:
    roomy.says(f"Moment.\n{CALL}\n{CALL}")
    events = await stream(roomy, tools=[WEATHER])
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    message = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
    assert kinds(events) == ["created", "in_progress", *message, "output_item.done", *call, *call, "completed"]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call", "function_call"]
    indices = [event["output_index"] for event in events if "output_index" in event]
    assert indices == sorted(indices)
    assert set(indices) == {0, 1, 2}


async def test_a_call_that_the_limit_cut_is_incomplete(roomy: Running) -> None:
    roomy.says(CALL)
    whole = await respond(roomy, tools=[WEATHER])
    tokens = whole["usage"]["output_tokens"]
    told = await respond(roomy, tools=[WEATHER], max_output_tokens=tokens - 18)
    assert told["status"] == told["output"][0]["status"] == "incomplete"
    assert whole["output"][0]["arguments"].startswith(told["output"][0]["arguments"])


async def test_one_call_ends_an_answer_without_parallel_calls(roomy: Running) -> None:
    roomy.says(f"{CALL}\n{CALL}")
    assert len((await respond(roomy, tools=[WEATHER]))["output"]) == 2
    told = await respond(roomy, tools=[WEATHER], parallel_tool_calls=False)
    assert (len(told["output"]), told["status"], told["parallel_tool_calls"]) == (1, "completed", False)


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        ("none", 0),
        ("auto", 1),
        ("required", 1),
        ({"type": "function", "name": "wetter"}, 1),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "wetter"}]}, 1),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "uhr"}]}, 0),
    ],
)
async def test_the_choice_of_tools_reaches_prompt_grammar_and_answer(roomy: Running, choice: Any, calls: int) -> None:
    roomy.says(CALL)
    clock = {"type": "function", "name": "uhr", "parameters": None, "strict": None}
    told = await respond(roomy, tools=[WEATHER, clock], tool_choice=choice)
    assert [item["type"] for item in told["output"]].count("function_call") == calls
    assert told["tool_choice"] == choice
    assert [(tool["name"], tool["strict"]) for tool in told["tools"]] == [("wetter", True), ("uhr", True)]
    assert ("wetter" in prompt(roomy)) == (choice != "none")
    assert (roomy.engine.requests[-1].params.grammar is None) == (choice == "none")


async def test_log_probabilities_tell_each_token_of_the_text_once(server: Running) -> None:
    server.says("Köln 🦁")
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    told = (await respond(server, include=include, top_logprobs=2))["output"][0]["content"][0]["logprobs"]
    assert bytes(byte for token in told for byte in token["bytes"]).decode() == "Köln 🦁"
    assert all(len(token["top_logprobs"]) == 2 for token in told)
    events = await stream(server, include=include, top_logprobs=2)
    deltas = [token for one in events if one["type"].endswith("text.delta") for token in one["logprobs"]]
    done = [one for one in events if one["type"].endswith("text.done")]
    assert deltas == told == done[0]["logprobs"]
    assert (await respond(server, include=include))["output"][0]["content"][0]["logprobs"][0]["top_logprobs"] == []


async def test_truncation_leaves_out_the_oldest_messages_but_never_a_results_call(server: Running) -> None:
    turns: list[dict[str, Any]] = []
    for number in range(6):
        turns += [
            {"role": "user", "content": f"Frage {number} " + "Paris " * 20},
            {"type": "function_call", "call_id": f"c{number}", "name": "wetter", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{number}", "output": f"Antwort {number}"},
        ]
    body: dict[str, Any] = {"input": [*turns, {"role": "user", "content": "Und?"}], "instructions": "Sei kurz."}
    answer = await server.http.post(PATH, json={"model": "leo", **body})
    assert error_of(answer)["code"] == "context_length_exceeded"
    assert error_of(answer)["param"] == "input"
    await respond(server, **body, truncation="auto", max_output_tokens=10)
    read = prompt(server)
    assert len(server.engine.requests[-1].prompt) <= 246
    assert "Sei kurz." in read
    assert "Und?" in read
    assert "Frage 0" not in read
    assert "Antwort 5" in read
    assert read.count("<tool_response>") == read.count("<tool_call>")
    huge = {"input": [{"role": "user", "content": "Paris " * 2000}, {"role": "user", "content": "Und?"}]}
    await respond(server, **huge, truncation="auto")
    assert "Paris" not in prompt(server)
    answer = await server.http.post(PATH, json={"model": "leo", "input": "Paris " * 2000, "truncation": "auto"})
    assert error_of(answer)["code"] == "context_length_exceeded"


async def test_sampling_fields_reach_the_engine(server: Running) -> None:
    await respond(server, temperature=0.5, top_p=0.25, max_output_tokens=7, seed=3, top_k=4, stop=["x"], priority=2)
    request = server.engine.requests[0]
    params = request.params
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.5, 0.25, 7, 3)
    assert (params.top_k, request.priority, params.n) == (4, 2, 1)


@pytest.mark.parametrize(
    ("form", "source", "param"),
    [
        ({"type": "text"}, None, None),
        ({"type": "json_object"}, {"type": "object"}, "text.format"),
        ({"type": "json_schema", "name": "a", "schema": {"type": "array"}}, {"type": "array"}, "text.format.schema"),
    ],
)
async def test_the_form_of_the_text_reaches_the_engine(server: Running, form: Any, source: Any, param: Any) -> None:
    told = await respond(server, text={"format": form, "verbosity": "low"})
    assert told["text"] == {"format": form, "verbosity": "low"}
    grammar = server.engine.requests[0].params.grammar
    assert (grammar and json.loads(grammar.source)) == source
    assert (grammar and grammar.param) == param


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": ["a"]}, "input[0]"),
    ({"input": [{"type": "reasoning"}]}, "input"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": "a", "mood": "good"}]}, "input[0].mood"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "a"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "computer_call"}]}, "input[0]"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
    ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}]}, "input[0]"),
    ({"messages": []}, "messages"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"response_format": {"type": "text"}}, "response_format"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 250}, "input"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"n": 2}, "n"),
    ({"include": ["everything"]}, "include[0]"),
    ({"truncation": "middle"}, "truncation"),
    ({"metadata": {"a": "b" * 513}}, "metadata.a"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"background": True}, "background"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"return_token_ids": True}, "return_token_ids"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format.schema"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    ({"tools": [WEATHER | {"parameters": {"type": "array"}}]}, "tools[0].parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "always", "tools": [WEATHER]}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "uhr"}, "tools": [WEATHER]}, "tool_choice"),
    ({"tool_choice": {"type": "function"}, "tools": [WEATHER]}, "tool_choice.name"),
    ({"tool_choice": {"type": "web_search"}, "tools": [WEATHER]}, "tool_choice.type"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}, "tools": [WEATHER]}, "tool_choice.tools"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: str(value)[:50])
async def test_a_bad_body_is_refused_naming_the_field(server: Running, body: dict[str, Any], param: str) -> None:
    answer = await server.http.post(PATH, json={"model": "leo", "input": "Hallo"} | body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert not server.engine.requests


@pytest.mark.parametrize("field", ["previous_response_id", "conversation"])
async def test_what_needs_an_earlier_response_is_refused_saying_that_none_is_kept(server: Running, field: str) -> None:
    with pytest.raises(openai.BadRequestError, match="keeps no responses"):
        await server.openai.responses.create(model="leo", input="Hallo", extra_body={field: "x_1"})


async def test_no_response_is_ever_found(server: Running) -> None:
    told = await respond(server)
    for ask in (
        server.openai.responses.retrieve(told["id"]),
        server.openai.responses.delete(told["id"]),
        server.openai.responses.cancel(told["id"]),
        server.openai.responses.input_items.list(told["id"]),
    ):
        with pytest.raises(openai.NotFoundError, match=f"'{told['id']}' not found.*keeps no responses"):
            await ask


async def test_a_failure_after_the_first_event_is_told_by_two_events(server: Running) -> None:
    server.engine.pause_after = 2
    server.engine.failure = EngineDied("the engine ended with code -9")
    answer = await server.http.post(PATH, json={"model": "leo", "input": "Hallo", "stream": True})
    *_, error, failed = [
        json.loads(text.split("\ndata: ")[1]) for text in answer.text.removesuffix("\n\n").split("\n\n")
    ]
    assert error["type"] == "error"
    assert "code -9" in error["message"]
    assert error["error"].keys() == {"message", "type", "param", "code"}
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "server_error"
    for event in (error, failed):
        EVENT.validate_python(event)
    events = await server.openai.responses.create(model="leo", input="Hallo", stream=True)
    with pytest.raises(openai.APIError, match="code -9"):
        [event async for event in events]


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_before_the_first_event_has_its_own_status(server: Running, streamed: bool) -> None:
    server.engine.refusal = EngineRefused("overloaded", "full")
    answer = await server.http.post(PATH, json={"model": "leo", "input": "Hallo", "stream": streamed})
    assert answer.status_code == 429
    assert error_of(answer)["code"] == "rate_limit_exceeded"


async def test_obfuscation_makes_deltas_of_few_sizes(server: Running) -> None:
    server.says("a Hauptstadt über alle Straßen")
    body = {"model": "leo", "input": "Hallo", "stream": True, "stream_options": {"include_obfuscation": True}}
    lines = (await server.http.post(PATH, json=body)).content.split(b"\n")
    deltas = [line for line in lines if b".delta" in line and line.startswith(b"data: ")]
    assert {(len(line) - len(b"data: ")) % 128 for line in deltas} == {0}
    assert not any("obfuscation" in event for event in await stream(server))


@pytest.mark.parametrize(
    ("streamed", "pause", "after"),
    [(False, 0, "nothing"), (False, 2, "nothing"), (True, 0, "nothing"), (True, 2, "first")],
)
async def test_a_client_that_goes_away_ends_its_work(server: Running, streamed: bool, pause: int, after: str) -> None:
    server.engine.pause_after = pause
    await leave(server, PATH, {"model": "leo", "input": "Hallo", "stream": streamed}, after=after)
    await asyncio.wait_for(server.engine.idle.wait(), PATIENCE)
    assert len(server.engine.aborts) == 1
    assert server.engine.running == 0


async def test_it_is_keyed_and_bounded_like_the_other_routes(start: Start) -> None:
    server = await start(api_key=["geheim"], max_body_bytes=1024)
    body = {"model": "leo", "input": "Hallo"}
    assert error_of(await server.http.post(PATH, json=body))["code"] == "invalid_api_key"
    headers = {"Authorization": "Bearer geheim", "x-request-id": "meine"}
    answer = await server.http.post(PATH, json=body, headers=headers)
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "meine")
    assert server.engine.requests[0].salt != ":"
    for other, status in (({"model": "luchs"}, 404), ({"input": "x" * 1100}, 413)):
        assert (await server.http.post(PATH, json=body | other, headers=headers)).status_code == status
    assert (await server.http.get(PATH, headers=headers)).status_code == 405
    server.engine.state, server.engine.ready = "loading", None
    assert (await server.http.post(PATH, json=body, headers=headers)).status_code == 503


async def test_its_body_is_described_in_every_field(server: Running) -> None:
    document = (await server.http.get("/openapi.json")).json()
    content = document["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]
    schemas = document["components"]["schemas"]
    assert content["schema"] == {"$ref": "#/components/schemas/ResponsesRequest"}
    assert set(schemas["ResponsesRequest"]["required"]) == {"model", "input"}
    own = ("ResponsesRequest", "MessageItem", "CallItem", "ResultItem", "ReasoningItem", "InputPart", "TextFormat")
    for name in (*own, "FunctionTool", "AllowedTool", "TokenizeRequest", "DetokenizeRequest"):
        assert schemas[name]["additionalProperties"] is False
        assert not [field for field, its in schemas[name]["properties"].items() if not its.get("description")], name
