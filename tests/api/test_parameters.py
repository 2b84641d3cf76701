"""Types and ranges of the parameter table: what lies at a boundary is taken, what lies beyond is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.completions import CompletionRequest

from .conftest import Running

INT32, INT64 = 2**31, 2**63
BOOLEAN = ([True, False, None], [1, 0, "true", []])
TEXT = (["", "x", None], [1, [], {}, True])
PROBABILITY = ([0, 0.0, 1, 1.0, 0.5, 1e-300, None], [-0.001, 1.001, "0.5", True, []])
PENALTY = ([-2, 2, -2.0, 0.5, None], [-2.001, 2.001, "1", True])
ALTERNATIVES = ([0, 20, None], [-1, 21, 1.5, "1"])
NEUTRAL = ([None], [1, "x", {}])
PLAIN = ([None, {"a": "b"}], [1, "x", []])

Values = tuple[list[Any], list[Any]]  # to be taken, to be refused

SHARED: dict[str, Values] = {
    "model": (["leo", "leo-alias"], [None, 1, []]),
    "temperature": ([0, 2, 2.0, 0.001, 1e-300, None], [-0.001, 2.001, "1", True, [], {}]),
    "top_p": PROBABILITY,
    "min_p": PROBABILITY,
    "top_k": ([-1, 0, 1, INT32 - 1, None], [-2, INT32, 1.5, "1", True]),
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "repetition_penalty": ([0.001, 1, 100, None], [0, 5e-324, 0.0009, -1, 100.5, "1"]),
    "logit_bias": (
        [{}, {"300": 100}, {"300": -100.0, "301": 0}, None],
        [{"300": 100.5}, {"300": -101}, {"300": "1"}, {"99999": 1}, {"-1": 1}, {"x": 1}, {"3.0": 1}, [], "x"],
    ),
    "allowed_token_ids": ([[300], [1, 300, 300], None], [[], [-1], [99999], [INT32], ["300"], 300]),
    "bad_words": ([[], ["x"] * 256, ["x" * 256], None], [["x"] * 257, ["x" * 257], [""], "x", [1], ["x" * 200] * 21]),
    "seed": ([0, -1, -INT64, INT64 - 1, None], [INT64, -INT64 - 1, 1.5, "1", True]),
    "n": ([1, 128, None], [0, -1, 129, 10**9, 1.5, "1", True]),
    "stop": (
        ["x", [], ["x"], ["a", "b", "c", "d"], "x" * 1024, None],
        ["", [""], ["a", "b", "c", "d", "e"], "x" * 1025, 1, [1], {}],
    ),
    "stop_token_ids": ([[], [300], [300] * 1024, None], [[-1], [99999], ["x"], [300] * 1025, 300]),
    "include_stop_str_in_output": BOOLEAN,
    "ignore_eos": BOOLEAN,
    "min_tokens": ([0, 1, 10, None], [-1, 1.5, "1", 100, INT32]),
    "prompt_logprobs": ALTERNATIVES,
    "truncate_prompt_tokens": ([-1, 1, 10**6, None], [-2, 0, 1.5, "1", INT32]),
    "skip_special_tokens": BOOLEAN,
    "return_token_ids": BOOLEAN,
    "stream": ([False, None], [1, "true"]),
    "priority": ([-INT32, INT32 - 1, None], [-INT32 - 1, INT32, "1", 1.5]),
    "cache_salt": (["x", "x" * 256, None], ["", "x" * 257, 1]),
    "user": TEXT,
    "metadata": PLAIN,
    "store": BOOLEAN,
    "service_tier": (["auto", "default", "flex", "priority", None], ["x", 1]),
    "safety_identifier": TEXT,
    "prompt_cache_key": TEXT,
    "prompt_cache_options": PLAIN,
    "prompt_cache_retention": TEXT,
    "guided_json": NEUTRAL,
    "guided_regex": NEUTRAL,
    "guided_choice": NEUTRAL,
    "guided_grammar": NEUTRAL,
}
COMPLETIONS: dict[str, Values] = {
    "prompt": (
        ["x", "", ["x"], ["x", ""], [300], [[300], [301, 302]], [""] * 64],
        [None, 1, {}, [], ["x", 1], [300, "x"], [[300], 301], [1.5], [-1], [99999], ["x"] * 1025, [[99999]]],
    ),
    "max_tokens": ([0, 1, 200, None], [-1, 1.5, "1", True, INT32]),
    "logprobs": ALTERNATIVES,
    "echo": BOOLEAN,
    "best_of": ([1, 128, None], [0, -1, 129, 1.5, "1"]),
    "add_special_tokens": BOOLEAN,
    "suffix": ([None], ["x", "", 1]),
}
MESSAGE = {"role": "user", "content": "x"}
CHATS: dict[str, Values] = {
    "messages": (
        [[MESSAGE], [MESSAGE] * 20],
        [None, [], "x", [1], [{"content": "x"}], [{"role": "x", "content": "x"}]],
    ),
    "max_tokens": ([1, 200, None], [0, -1, 1.5, "1", True, INT32]),
    "max_completion_tokens": ([1, 200, None], [0, -1, 1.5, "1", True, INT32]),
    "logprobs": BOOLEAN,
    "add_generation_prompt": BOOLEAN,
    "chat_template_kwargs": ([{}, None], [{"x": 1}, {"messages": 1}, [], {"x": []}]),
    "reasoning_effort": TEXT,
    "verbosity": TEXT,
    "prediction": PLAIN,
    "modalities": ([["text"], None], [["audio"], ["text", "audio"], "text"]),
    "audio": NEUTRAL,
    "web_search_options": NEUTRAL,
    "moderation": NEUTRAL,
}
# What has tests of its own: a field that only counts beside another one, tools, grammars.
ELSEWHERE = {"stream_options", "top_logprobs", "continue_final_message"}
ELSEWHERE |= {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"}
ELSEWHERE |= {"response_format", "structured_outputs"}

TABLES = {"completions": SHARED | COMPLETIONS, "chat": SHARED | CHATS}


async def ask(server: Running, endpoint: str, body: dict[str, Any]) -> tuple[int, Any]:
    base = {"max_tokens": 20} if endpoint == "completions" else {"max_completion_tokens": 20}
    request = server.complete if endpoint == "completions" else server.chat
    response = await request(**base | body)
    return response.status_code, response.json()


async def refusal(server: Running, endpoint: str, body: dict[str, Any]) -> str:
    """The `param` of the 400 that this body must get."""
    status, answer = await ask(server, endpoint, body)
    assert status == 400, (body, answer)
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    return str(error["param"])


def test_every_field_is_in_the_table() -> None:
    assert {*TABLES["completions"], *ELSEWHERE} >= set(CompletionRequest.model_fields)
    assert {*TABLES["chat"], *ELSEWHERE} >= set(ChatRequest.model_fields)
    assert set(TABLES["completions"]) <= set(CompletionRequest.model_fields)
    assert set(TABLES["chat"]) <= set(ChatRequest.model_fields)


@pytest.mark.parametrize("endpoint", TABLES)
async def test_values_at_the_boundary_are_taken_and_those_beyond_refused(server: Running, endpoint: str) -> None:
    for field, (taken, refused) in TABLES[endpoint].items():
        for value in taken:
            extra = {"max_tokens": 20} if field == "max_completion_tokens" and value is None else {}
            status, answer = await ask(server, endpoint, extra | {field: value})
            assert status == 200, (field, value, answer)
        for value in refused:
            param = await refusal(server, endpoint, {field: value})
            assert param.partition("[")[0].partition(".")[0] == field, (value, param)


@pytest.mark.parametrize("endpoint", TABLES)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
async def test_numbers_that_are_none_are_refused(server: Running, endpoint: str, number: str) -> None:
    path = "/v1/completions" if endpoint == "completions" else "/v1/chat/completions"
    required = {"prompt": "x"} if endpoint == "completions" else {"messages": [MESSAGE]}
    body = json.dumps({"model": "leo", "temperature": 0.5} | required).replace("0.5", number)
    response = await server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("endpoint", TABLES)
async def test_a_field_that_nobody_knows_is_refused_by_its_name(server: Running, endpoint: str) -> None:
    assert await refusal(server, endpoint, {"temprature": 1}) == "temprature"
    assert await refusal(server, endpoint, {"best_off": None}) == "best_off"


@pytest.mark.parametrize("endpoint", TABLES)
async def test_fields_that_contradict_each_other_are_refused(server: Running, endpoint: str) -> None:
    assert await refusal(server, endpoint, {"stream_options": {"include_usage": True}}) == "stream_options"
    assert await refusal(server, endpoint, {"min_tokens": 21}) == "min_tokens"
    if endpoint == "chat":
        assert await refusal(server, endpoint, {"top_logprobs": 1}) == "top_logprobs"
        for value in (-1, 21, "1"):
            assert await refusal(server, endpoint, {"logprobs": True, "top_logprobs": value}) == "top_logprobs"
        assert await refusal(server, endpoint, {"logprobs": 3}) == "logprobs"
    else:
        assert await refusal(server, endpoint, {"n": 3, "best_of": 2}) == "best_of"
        assert await refusal(server, endpoint, {"best_of": 2, "stream": True}) == "best_of"
        assert await refusal(server, endpoint, {"top_logprobs": 1}) == "top_logprobs"


@pytest.mark.parametrize("endpoint", TABLES)
@pytest.mark.parametrize("name", ["include_usage", "include_obfuscation", "continuous_usage_stats"])
async def test_options_of_streams_are_booleans(server: Running, endpoint: str, name: str) -> None:
    for value in (1, "true", []):
        param = await refusal(server, endpoint, {"stream": True, "stream_options": {name: value}})
        assert param == f"stream_options.{name}"
    assert await refusal(server, endpoint, {"stream": True, "stream_options": {"x": 1}}) == "stream_options.x"
    assert await refusal(server, endpoint, {"stream": True, "stream_options": True}) == "stream_options"


async def test_what_the_client_asks_for_reaches_the_sampler(server: Running) -> None:
    """Exact numbers: nothing is lifted, clamped or left out on the way."""
    given: dict[str, Any] = {
        "temperature": 0.001,
        "top_p": 0,
        "top_k": -1,
        "min_p": 0.25,
        "presence_penalty": -1.5,
        "frequency_penalty": 0.75,
        "repetition_penalty": 1.25,
        "logit_bias": {"300": -100, "301": 2.5},
        "seed": -7,
        "min_tokens": 3,
        "stop_token_ids": [305, 304],
        "ignore_eos": True,
    }
    for endpoint in TABLES:
        server.engine.requests.clear()
        assert (await ask(server, endpoint, given))[0] == 200
        params = server.engine.requests[0].params
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
            assert getattr(params, name) == given[name]
        assert params.logit_bias == {300: -100, 301: 2.5}
        assert params.seed == 2**64 - 7
        assert (params.top_k, params.min_tokens, params.max_tokens, params.n) == (0, 3, 20, 1)
        assert params.stop_token_ids == (304, 305)
