"""langchain-openai, given nothing but our base URL."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.conftest import Server

MODEL = "leoserve-demo"
QUESTION = "Was ist die Hauptstadt von Frankreich?"


class City(BaseModel):
    """Eine Stadt."""

    name: str = Field(max_length=12)
    river: Literal["Rhein", "Spree", "Düssel"]
    inhabitants: int = Field(ge=0, le=5_000_000)


@tool
def weather(city: Literal["Köln", "Berlin"], days: Annotated[int, Field(ge=1, le=14)]) -> str:
    """Das Wetter in einer Stadt."""
    return f"Sonne in {city}"


def chat(server: Server, **options: Any) -> ChatOpenAI:
    defaults: dict[str, Any] = {"temperature": 0, "max_retries": 0, "timeout": 200}
    return ChatOpenAI(model=MODEL, base_url=f"{server.url}/v1", api_key="none", **(defaults | options))


def test_a_chain_answers_whole_streamed_and_in_batches(demo_server: Server) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Antworte kurz."), ("user", "{question}")])
    chain = prompt | chat(demo_server) | StrOutputParser()
    whole = chain.invoke({"question": QUESTION})
    assert "Paris" in whole
    assert "".join(chain.stream({"question": QUESTION})) == whole
    assert chain.batch([{"question": QUESTION}] * 3) == [whole] * 3

    async def heard() -> str:
        return "".join([part async for part in chain.astream({"question": QUESTION})])

    assert asyncio.run(heard()) == whole


@pytest.mark.parametrize("through_responses", [False, True])
def test_a_stream_adds_up_to_the_whole_message(demo_server: Server, through_responses: bool) -> None:
    model = chat(demo_server, use_responses_api=through_responses, stream_usage=True)
    asked = [SystemMessage("Antworte kurz."), HumanMessage(QUESTION)]
    whole: Any = model.invoke(asked)
    added: Any = sum(model.stream(asked), start=AIMessageChunk(""))
    assert "Paris" in whole.text
    assert added.text == whole.text
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert added.usage_metadata[name] == whole.usage_metadata[name] > 0


def test_finish_and_log_probabilities_are_told(demo_server: Server) -> None:
    answer = chat(demo_server, logprobs=True, top_logprobs=2, max_tokens=3).invoke(QUESTION)
    told = answer.response_metadata
    assert (told["finish_reason"], told["model_name"]) == ("length", MODEL)
    assert "".join(entry["token"] for entry in told["logprobs"]["content"]) == answer.text
    assert all(len(entry["top_logprobs"]) == 2 for entry in told["logprobs"]["content"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("through_responses", [False, True])
def test_structured_output_is_of_its_class(demo_server: Server, method: Any, through_responses: bool) -> None:
    for temperature in (0, 2):
        model = chat(demo_server, temperature=temperature, use_responses_api=through_responses)
        structured = model.with_structured_output(City, method=method, include_raw=True)
        answer: Any = structured.invoke(QUESTION)
        assert answer["parsing_error"] is None
        assert isinstance(answer["parsed"], City)


def test_json_mode_gives_an_object_or_says_that_it_was_cut_off(demo_server: Server) -> None:
    question = "Antworte in JSON: Was ist die Hauptstadt von Frankreich?"

    def ask(**options: Any) -> Any:
        return chat(demo_server, **options).with_structured_output(method="json_mode").invoke(question)

    assert isinstance(ask(), dict)
    with pytest.raises(openai.LengthFinishReasonError):
        ask(max_tokens=2)
    for seed in range(4):
        with suppress(openai.LengthFinishReasonError):  # nothing bounds what a random string says
            assert isinstance(ask(temperature=2, seed=seed, max_tokens=100), dict)


def test_a_bound_tool_is_called_and_its_answer_read(demo_server: Server) -> None:
    model = chat(demo_server)
    forced = model.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False)
    asked = HumanMessage("Wie ist das Wetter in Köln?")
    called: Any = forced.invoke([asked])
    (call,) = called.tool_calls
    assert call["name"] == "weather"
    assert call["args"]["city"] in ("Köln", "Berlin")
    streamed: Any = sum(forced.stream([asked]), start=AIMessageChunk(""))
    assert [(each["name"], each["args"]) for each in streamed.tool_calls] == [(call["name"], call["args"])]
    told = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    after = chat(demo_server, max_tokens=40).bind_tools([weather], tool_choice="none")
    assert after.invoke([asked, called, told]).text


def test_the_completions_class_whole_streamed_and_in_batches(demo_server: Server) -> None:
    model = OpenAI(model=MODEL, base_url=f"{demo_server.url}/v1", api_key="none", temperature=0, max_tokens=12)
    whole = model.invoke("Es war einmal")
    assert "".join(model.stream("Es war einmal")) == whole != ""
    assert model.batch(["Es war einmal", "Guten Tag"])[0] == whole
    assert len(model.generate(["Es war einmal"] * 2).generations) == 2


def test_other_fields_go_through_and_errors_come_back(demo_server: Server, keyed_server: Server) -> None:
    model = chat(demo_server, extra_body={"structured_outputs": {"choice": ["Köln", "Düsseldorf"]}})
    assert model.invoke(QUESTION).text in ("Köln", "Düsseldorf")
    with pytest.raises(openai.BadRequestError) as refused:
        chat(demo_server, temperature=None, top_p=7).invoke(QUESTION)
    assert refused.value.param == "top_p"
    with pytest.raises(openai.AuthenticationError):
        chat(keyed_server).invoke(QUESTION)


def test_overload_is_waited_out(narrow_server: Server) -> None:
    model = chat(narrow_server, max_retries=20, extra_body={"ignore_eos": True}, max_tokens=40)
    answers = model.batch([QUESTION] * 12, config={"max_concurrency": 12})
    assert [answer.response_metadata["finish_reason"] for answer in answers] == ["length"] * 12
