"""/v1/responses of a real server with the demo model, asked by OpenAI's SDK and by its Agents SDK."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import httpx
import openai
import pytest
from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from pydantic import BaseModel, Field

from tests.conftest import PATIENCE, Server

QUESTION = "Was ist die Hauptstadt von Frankreich?"
MODEL = "leoserve-demo"


class City(BaseModel):
    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=5_000_000)


def test_a_german_question_is_answered_streamed_and_parsed(demo_server: Server) -> None:
    client = demo_server.openai()
    whole = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
    assert "Paris" in whole.output_text
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens
    parsed = client.responses.parse(
        model=MODEL, input=QUESTION, text_format=City, temperature=2, extra_body={"seed": 1}
    )
    assert parsed.status == "completed"
    assert isinstance(parsed.output_parsed, City)


def test_a_rendered_and_tokenized_chat_is_what_an_answer_counts(demo_server: Server) -> None:
    chat: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
    rendered = httpx.post(f"{demo_server.url}/v1/chat/completions/render", json=chat, timeout=PATIENCE).json()
    tokenized = httpx.post(f"{demo_server.url}/tokenize", json=chat, timeout=PATIENCE).json()
    answer = demo_server.openai().chat.completions.create(**chat, max_tokens=1)
    assert rendered["token_ids"] == tokenized["tokens"]
    assert answer.usage.prompt_tokens == tokenized["count"] == rendered["count"]
    text = httpx.post(f"{demo_server.url}/detokenize", json={"tokens": tokenized["tokens"]}, timeout=PATIENCE).json()[
        "prompt"
    ]
    assert QUESTION in text
    assert QUESTION in rendered["prompt"]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_calls_its_tool_and_reads_the_result(demo_server: Server, streamed: bool) -> None:
    set_tracing_disabled(True)
    asked: list[str] = []

    @function_tool
    def weather(city: Literal["Köln", "Berlin"]) -> str:
        """Das Wetter in einer Stadt."""
        asked.append(city)
        return "Sonne"

    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0) as client:
            agent = Agent(
                name="Wetter",
                instructions="Antworte kurz.",
                tools=[weather],
                model=OpenAIResponsesModel(model=MODEL, openai_client=client),
                model_settings=ModelSettings(tool_choice="required", temperature=0, parallel_tool_calls=False),
            )
            if not streamed:
                return await Runner.run(agent, "Wie ist das Wetter?")
            result = Runner.run_streamed(agent, "Wie ist das Wetter?")
            async for _ in result.stream_events():
                pass
            return result

    result = asyncio.run(run())
    assert len(asked) == 1
    kinds = [item.type for item in result.new_items]
    assert kinds == ["tool_call_item", "tool_call_output_item", "message_output_item"]
    assert isinstance(result.final_output, str)
