"""litellm, with its provider of OpenAI-compatible servers and with that of vLLM, whose users come from there."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, Literal

import litellm
import pytest
from pydantic import BaseModel, Field

MODEL = "leoserve-demo"
MESSAGES: Any = [{"role": "user", "content": "Was ist die Hauptstadt von Frankreich?"}]


class City(BaseModel):
    name: str = Field(max_length=12)
    river: Literal["Rhein", "Spree", "Düssel"]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Das Wetter in einer Stadt",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Köln", "Berlin"]}}, "required": ["city"]},
    },
}


@pytest.fixture(params=["openai", "hosted_vllm"])
def ask(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What every call is given."""
    return at("LEOSERVE_URL", request.param) | {"messages": MESSAGES, "temperature": 0}


def at(name: str, provider: str = "openai") -> dict[str, Any]:
    return {
        "model": f"{provider}/{MODEL}",
        "api_base": f"{os.environ[name]}/v1",
        "api_key": "none",
        "timeout": 200,
        "num_retries": 0,
        "max_retries": 0,
    }


def test_a_question_is_answered_whole_and_streamed(ask: dict[str, Any]) -> None:
    whole: Any = litellm.completion(**ask)
    text = whole.choices[0].message.content
    assert "Paris" in text
    assert whole.choices[0].finish_reason == "stop"
    chunks: Any = list(litellm.completion(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    built: Any = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert built.choices[0].message.content == text
    for usage in (built.usage, chunks[-1].usage):
        assert usage.completion_tokens == whole.usage.completion_tokens
        assert usage.prompt_tokens == whole.usage.prompt_tokens

    async def heard() -> str:
        stream: Any = await litellm.acompletion(**ask, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(heard()) == text


def test_forms_calls_and_scores(ask: dict[str, Any]) -> None:
    hot = ask | {"temperature": 2, "seed": 3}
    form: Any = litellm.completion(**hot, response_format=City)
    City.model_validate_json(form.choices[0].message.content)
    forced = ask | {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    called: Any = litellm.completion(**forced)
    (call,) = called.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Köln", "Berlin")
    assert called.choices[0].finish_reason == "tool_calls"
    built: Any = litellm.stream_chunk_builder(list(litellm.completion(**forced, stream=True)))
    assert built.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    scored: Any = litellm.completion(**ask, logprobs=True, top_logprobs=2, max_tokens=3)
    assert [len(entry.top_logprobs) for entry in scored.choices[0].logprobs.content] == [2, 2, 2]
    several: Any = litellm.completion(**hot, n=2, max_tokens=5)
    assert len(several.choices) == 2


def test_fields_that_only_servers_of_this_kind_have_go_through(ask: dict[str, Any]) -> None:
    options = {"structured_outputs": {"choice": ["Köln", "Düsseldorf"]}, "top_k": 5}
    answer: Any = litellm.completion(**ask, extra_body=options)
    assert answer.choices[0].message.content in ("Köln", "Düsseldorf")


def test_completions_and_responses() -> None:
    where = at("LEOSERVE_URL")
    whole: Any = litellm.text_completion(
        **where | {"model": f"text-completion-openai/{MODEL}"}, prompt="Es war einmal", max_tokens=8, temperature=0
    )
    assert whole.usage.completion_tokens == 8
    chunks: Any = litellm.text_completion(
        **where | {"model": f"text-completion-openai/{MODEL}"},
        prompt="Es war einmal",
        max_tokens=8,
        temperature=0,
        stream=True,
    )
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == whole.choices[0].text
    answer: Any = litellm.responses(**where, input=MESSAGES[0]["content"], temperature=0)
    assert "Paris" in answer.output[0].content[0].text


def test_errors_are_of_the_class_a_router_decides_by(ask: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**ask, max_tokens=10**6)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**ask | {"model": ask["model"].replace(MODEL, "unbekannt")})
    with pytest.raises(litellm.BadRequestError, match="top_p"):
        litellm.completion(**ask, top_p=7)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**ask | {"api_base": f"{os.environ['LEOSERVE_KEYED_URL']}/v1"})


def test_a_router_waits_out_an_overload() -> None:
    long: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    where = {name: value for name, value in at("LEOSERVE_NARROW_URL").items() if "retries" not in name}
    router = litellm.Router(
        model_list=[{"model_name": "leo", "litellm_params": where}],
        num_retries=20,
        disable_cooldowns=True,
    )

    async def all_of() -> list[Any]:
        return await asyncio.gather(*(router.acompletion(model="leo", **long) for _ in range(8)))

    assert [answer.usage.completion_tokens for answer in asyncio.run(all_of())] == [40] * 8
