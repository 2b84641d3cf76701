"""OpenAI's Agents SDK with its model class of chat completions; tests/end_to_end/test_responses.py has the default."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal

import openai
import pytest
from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIProvider,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

from tests.conftest import Server

MODEL = "leoserve-demo"
QUESTION = "Was ist die Hauptstadt von Frankreich?"


class Verdict(BaseModel):
    river: Literal["Rhein", "Spree", "Düssel"]
    sure: bool


@pytest.fixture(autouse=True)
def untraced() -> None:
    set_tracing_disabled(True)  # it would send what was said to OpenAI


def asked(server: Server, run: Any) -> Any:
    """What `run` gives, called with a model of this server."""

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            pending: Coroutine[Any, Any, Any] = run(OpenAIChatCompletionsModel(model=MODEL, openai_client=client))
            return await pending

    return asyncio.run(ask())


async def streamed(agent: Agent[Any], question: str) -> tuple[Any, str]:
    """The result of a run whose events are read, and the text that came in them."""
    result = Runner.run_streamed(agent, question)
    text = ""
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    return result, text


def test_an_agent_answers_and_a_stream_says_the_same(demo_server: Server) -> None:
    async def run(model: Any) -> tuple[Any, Any, str]:
        settings = ModelSettings(temperature=0, include_usage=True)
        agent = Agent(name="Leo", instructions="Antworte kurz.", model=model, model_settings=settings)
        whole = await Runner.run(agent, QUESTION)
        return whole, *await streamed(agent, QUESTION)

    whole, result, text = asked(demo_server, run)
    assert "Paris" in whole.final_output
    assert result.final_output == text == whole.final_output
    assert result.context_wrapper.usage.output_tokens == whole.context_wrapper.usage.output_tokens > 0


@pytest.mark.parametrize("as_stream", [False, True])
def test_an_agent_calls_its_tool_and_reads_what_it_said(demo_server: Server, as_stream: bool) -> None:
    cities: list[str] = []

    @function_tool
    def weather(city: Literal["Köln", "Berlin"]) -> str:
        """Das Wetter in einer Stadt."""
        cities.append(city)
        return "Sonne"

    async def run(model: Any) -> Any:
        settings = ModelSettings(tool_choice="required", temperature=0, parallel_tool_calls=False, max_tokens=60)
        agent = Agent(name="Wetter", instructions="Kurz.", tools=[weather], model=model, model_settings=settings)
        if as_stream:
            return (await streamed(agent, "Wie ist das Wetter?"))[0]
        return await Runner.run(agent, "Wie ist das Wetter?")

    result = asked(demo_server, run)
    assert cities
    assert set(cities) <= {"Köln", "Berlin"}
    kinds = [item.type for item in result.new_items]
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"]
    assert isinstance(result.final_output, str)


@pytest.mark.parametrize("as_stream", [False, True])
def test_an_output_type_is_kept(demo_server: Server, as_stream: bool) -> None:
    async def run(model: Any) -> Any:
        settings = ModelSettings(temperature=2)
        agent = Agent(name="Leo", model=model, model_settings=settings, output_type=Verdict)
        return (await streamed(agent, QUESTION))[0] if as_stream else await Runner.run(agent, QUESTION)

    assert isinstance(asked(demo_server, run).final_output, Verdict)


def test_an_agent_hands_over_to_another(demo_server: Server) -> None:
    async def run(model: Any) -> Any:
        other = Agent(name="Rhein", instructions="Kurz.", model=model, model_settings=ModelSettings(temperature=0))
        settings = ModelSettings(tool_choice="required", temperature=0, parallel_tool_calls=False)
        first = Agent(name="Empfang", instructions="Kurz.", handoffs=[other], model=model, model_settings=settings)
        return await Runner.run(first, QUESTION)

    result = asked(demo_server, run)
    assert result.last_agent.name == "Rhein"
    assert result.final_output


def test_a_loop_of_calls_ends_where_the_run_says(demo_server: Server) -> None:
    @function_tool
    def again() -> str:
        """Noch einmal."""
        return "Noch einmal."

    async def run(model: Any) -> Any:
        settings = ModelSettings(tool_choice="required", temperature=0)
        agent = Agent(name="Leo", tools=[again], model=model, model_settings=settings, reset_tool_choice=False)
        return await Runner.run(agent, "Und?", max_turns=2)

    with pytest.raises(MaxTurnsExceeded):
        asked(demo_server, run)


@pytest.mark.parametrize("through_responses", [False, True])
def test_a_provider_needs_a_base_url_and_nothing_else(demo_server: Server, through_responses: bool) -> None:
    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="none") as client:
            provider = OpenAIProvider(openai_client=client, use_responses=through_responses)
            agent = Agent(name="Leo", model=MODEL, model_settings=ModelSettings(temperature=0))
            return await Runner.run(agent, QUESTION, run_config=RunConfig(model_provider=provider))

    assert "Paris" in asyncio.run(run()).final_output
