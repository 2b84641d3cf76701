"""Forced calls of a model that knows nothing: a real server, random weights, OpenAI's SDK."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated, Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server

MODEL = "leo"
QUESTION: Any = [{"role": "user", "content": "Wie wird das Wetter in Köln?"}]


class Size(StrEnum):
    SMALL = "klein"
    LARGE = "größer"


class Weather(BaseModel):
    city: Annotated[str, Field(max_length=12)]
    days: Annotated[int, Field(ge=1, le=14)]
    size: Size
    words: Annotated[list[Annotated[str, Field(max_length=4)]], Field(max_length=2)]
    again: Size | None


class Clock(BaseModel):
    zone: Size


TOOLS = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)]
MODELS = {"Weather": Weather, "Clock": Clock}


@pytest.fixture(scope="module")
def server(serve_once: Serve, tmp_path_factory: pytest.TempPathFactory) -> Server:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b", fmt="bin-sharded", rope="old")
    return serve_once(checkpoint, "--num-kv-blocks", "512", "--dtype", "float32")


def asking(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def test_forced_calls_at_temperature_2_parse_and_validate(server: Server) -> None:
    async def ask() -> list[Any]:
        async with asking(server) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(24)))

    async def one(client: openai.AsyncOpenAI, seed: int) -> Any:
        choice: Any = ["required", {"type": "function", "function": {"name": "Weather"}}][seed % 2]
        options: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "temperature": 2, "seed": seed}
        options |= {"parallel_tool_calls": False, "logprobs": True}
        if seed % 3:
            return await client.chat.completions.parse(model=MODEL, messages=QUESTION, **options)
        async with client.chat.completions.stream(model=MODEL, messages=QUESTION, **options) as stream:
            return await stream.get_final_completion()

    seen = set()
    for number, answer in enumerate(asyncio.run(ask())):
        choice = answer.choices[0]
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert isinstance(call.function.parsed_arguments, MODELS[call.function.name])
        assert choice.finish_reason == ("stop" if number % 2 else "tool_calls")
        assert number % 2 == 0 or call.function.name == "Weather"
        text = f'<tool_call>\n{{"name": "{call.function.name}", "arguments": {call.function.arguments}}}\n</tool_call>'
        told = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
        assert told.decode() == text, "every token of the call once"
        seen.add(call.function.arguments)
    assert len(seen) > 12, "the model chose what it could"


def test_several_forced_calls_are_each_right_and_a_cut_one_says_so(server: Server) -> None:
    for seed in range(6):
        answer = server.openai().chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            tools=TOOLS,
            tool_choice="required",
            temperature=2,
            seed=seed,
            max_tokens=900,
            extra_body={"min_tokens": 300},  # more than any one call has
        )
        choice = answer.choices[0]
        calls = choice.message.tool_calls
        assert choice.finish_reason in ("tool_calls", "length")
        for call in calls if choice.finish_reason == "tool_calls" else calls[:-1]:
            MODELS[call.function.name].model_validate_json(call.function.arguments)
        assert len(calls) > 1
    cut = server.openai().chat.completions.create(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", temperature=2, max_tokens=30
    )
    assert cut.choices[0].finish_reason == "length"


def test_streamed_calls_are_those_of_the_whole_answer(server: Server) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, "tool_choice": "required"}
    ask |= {"temperature": 2, "seed": 5, "n": 2, "max_tokens": 300}
    whole = server.openai().chat.completions.create(**ask)
    streamed: list[list[list[str]]] = [[], []]
    for chunk in server.openai().chat.completions.create(**ask, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            calls = streamed[chunk.choices[0].index]
            if part.index == len(calls):
                calls.append([part.function.name, ""])
            calls[part.index][1] += part.function.arguments
    for choice, calls in zip(whole.choices, streamed, strict=True):
        assert [[call.function.name, call.function.arguments] for call in choice.message.tool_calls] == calls


def test_an_answer_is_of_the_wanted_form_or_a_call(server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "clock", "schema": Clock.model_json_schema()}}
    options: dict[str, Any] = {"tools": [TOOLS[1]], "response_format": form, "temperature": 2, "max_tokens": 400}
    options |= {"parallel_tool_calls": False}
    seen = set()
    for seed in range(24):
        answer = server.openai().chat.completions.create(model=MODEL, messages=QUESTION, seed=seed, **options)
        choice = answer.choices[0]
        seen.add(choice.finish_reason)
        if choice.finish_reason == "tool_calls":
            assert choice.message.content is None
            Clock.model_validate_json(choice.message.tool_calls[0].function.arguments)
        elif choice.finish_reason == "stop":
            assert not choice.message.tool_calls
            Clock.model_validate_json(choice.message.content)
    assert {"stop", "tool_calls"} <= seen


def test_a_schema_that_no_grammar_can_express_is_refused_before_the_first_token(server: Server) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": odd, "strict": True}}
    with pytest.raises(openai.BadRequestError) as refused:
        server.openai().chat.completions.create(
            model=MODEL, messages=QUESTION, tools=[tool], tool_choice="required", stream=True
        )
    assert refused.value.param == "tools"
