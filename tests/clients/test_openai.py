"""OpenAI's own SDK for Python: each way to ask, to stream, to be refused, to give up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from tests.conftest import PATIENCE, Serve, Server

MODEL = "leoserve-demo"
QUESTION: Any = [{"role": "user", "content": "Was ist die Hauptstadt von Frankreich?"}]
LONG: Any = {"model": MODEL, "prompt": "Es war einmal", "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
ENDLESS = LONG | {"n": 16}  # seconds of work: whoever goes away, goes before its end


class City(BaseModel):
    name: str = Field(max_length=12)
    river: Literal["Rhein", "Spree", "Düssel"]


def asynchronous(server: Server, **options: Any) -> openai.AsyncOpenAI:
    defaults: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 200}
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", **(defaults | options))


def gauge(server: Server, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def until(condition: Callable[[], bool]) -> None:
    """Poll without a deadline of its own: the test's is the limit."""
    while not condition():
        time.sleep(0.02)


def nothing_held(server: Server) -> bool:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return not any(gauge(server, name) for name in names)


def test_both_clients_give_the_same_answer_in_every_way_to_ask(demo_server: Server) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "temperature": 0}
    client = demo_server.openai()
    answer = client.chat.completions.create(**ask).choices[0].message.content
    assert "Paris" in answer
    raw = client.chat.completions.with_raw_response.create(**ask)
    assert raw.parse().choices[0].message.content == answer
    assert raw.request_id == raw.headers["x-request-id"] != ""
    with client.chat.completions.with_streaming_response.create(**ask) as response:
        assert json.loads("".join(response.iter_text()))["choices"][0]["message"]["content"] == answer
    with client.chat.completions.with_streaming_response.create(**ask, stream=True) as response:
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]
    with client.chat.completions.create(**ask, stream=True) as chunks:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    with client.chat.completions.stream(**ask) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == answer
        assert stream.get_final_completion().choices[0].message.content == answer

    async def others() -> list[str | None]:
        async with asynchronous(demo_server) as patient:
            whole = await patient.chat.completions.create(**ask)
            chunks = await patient.chat.completions.create(**ask, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in chunks]
            async with patient.chat.completions.stream(**ask) as stream:
                final = await stream.get_final_completion()
            told = await patient.chat.completions.with_raw_response.create(**ask)
            contents = [each.choices[0].message.content for each in (whole, final, told.parse())]
            return [*contents, "".join(parts)]

    assert set(asyncio.run(others())) == {answer}


def test_parsed_answers_and_parsed_streams(demo_server: Server) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "temperature": 2, "seed": 3, "response_format": City}
    client = demo_server.openai()
    parsed = client.chat.completions.parse(**ask).choices[0].message.parsed
    assert isinstance(parsed, City)
    snapshots = []
    with client.chat.completions.stream(**ask) as stream:
        for event in stream:
            if event.type == "content.delta":
                snapshots.append(event.parsed)
        assert stream.get_final_completion().choices[0].message.parsed == parsed
    assert snapshots[-1] == parsed.model_dump()
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**ask, max_tokens=3)

    async def patient() -> Any:
        async with asynchronous(demo_server) as client:
            return (await client.chat.completions.parse(**ask)).choices[0].message.parsed

    assert asyncio.run(patient()) == parsed


def test_a_429_is_waited_out_by_what_our_headers_say(narrow_server: Server) -> None:
    async def all_of(retries: int, tokens: int) -> list[Any]:
        ask = LONG | {"max_tokens": tokens}
        async with asynchronous(narrow_server, max_retries=retries) as client:
            return await asyncio.gather(*(client.completions.create(**ask) for _ in range(12)), return_exceptions=True)

    # Answers long enough for all twelve to come while the first three are not done.
    refused = [each for each in asyncio.run(all_of(0, 400)) if isinstance(each, openai.APIError)]
    assert refused
    for error in refused:
        assert isinstance(error, openai.RateLimitError)
        assert error.code == "rate_limit_exceeded"
        assert 0 < float(error.response.headers["retry-after-ms"]) <= 120_000
        assert 0 < int(error.response.headers["retry-after"]) <= 120
    assert [each.usage.completion_tokens for each in asyncio.run(all_of(20, 40))] == [40] * 12


def test_a_start_is_waited_out(serve: Serve) -> None:
    server = serve(None, wait=False)
    url = server.url  # known while the model is still loaded
    with httpx.Client() as http:
        refusal = http.get(f"{url}/v1/models")
    assert refusal.status_code in (200, 503)
    answer = server.openai(max_retries=10).chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert "Paris" in answer.choices[0].message.content


def test_an_engine_that_dies_is_an_error_in_a_stream_and_is_waited_out_by_the_next(serve: Serve) -> None:
    server = serve(None)
    engine = server.engine
    chunks = server.openai().completions.create(**ENDLESS, stream=True)
    next(chunks)
    engine.kill()
    with pytest.raises(openai.APIError) as broken:
        list(chunks)
    assert broken.value.type == "server_error"
    with pytest.raises(openai.InternalServerError) as refused:
        server.openai().completions.create(**LONG)
    assert refused.value.status_code == 503
    answer = server.openai(max_retries=10).chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert "Paris" in answer.choices[0].message.content


@pytest.mark.parametrize("as_stream", [False, True])
def test_what_a_client_gives_up_is_freed(demo_server: Server, as_stream: bool) -> None:
    hurried = demo_server.openai(timeout=0.2)
    with pytest.raises(openai.APITimeoutError):
        hurried.completions.create(**ENDLESS)
    until(lambda: nothing_held(demo_server))

    async def cancelled() -> None:
        async with asynchronous(demo_server) as client:
            if as_stream:
                chunks: Any = await client.completions.create(**ENDLESS, stream=True)
                await anext(chunks)
                await chunks.close()
                return
            task = asyncio.create_task(client.completions.create(**ENDLESS))
            while gauge(demo_server, "vllm:num_requests_running") == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    until(lambda: nothing_held(demo_server))


REFUSALS: list[tuple[dict[str, Any], type[openai.APIStatusError], str | None, str | None]] = [
    ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model"),
    ({"messages": []}, openai.BadRequestError, "empty_array", "messages"),
    ({"temperature": 3}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
    ({"max_tokens": 10**6}, openai.BadRequestError, "context_length_exceeded", "messages"),
    ({"extra_body": {"frequenz": 1}}, openai.BadRequestError, "unknown_parameter", "frequenz"),
    ({"n": 10**30}, openai.BadRequestError, None, "n"),
    ({"stop": ["a", "b", "c", "d", "e"]}, openai.BadRequestError, None, "stop"),
]


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(("change", "kind", "code", "param"), REFUSALS, ids=lambda part: str(part)[:20])
def test_refusals_are_of_their_class(
    demo_server: Server, change: Any, kind: Any, code: str | None, param: str | None, as_stream: bool
) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "stream": as_stream} | change
    with pytest.raises(kind) as refused:
        demo_server.openai().chat.completions.create(**ask)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.param == param
    assert code is None or refused.value.code == code
    assert refused.value.request_id


def test_models_and_keys(keyed_server: Server) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        keyed_server.openai().models.list()
    assert refused.value.code == "invalid_api_key"
    client = keyed_server.openai(api_key="geheim")
    assert [card.id for card in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
