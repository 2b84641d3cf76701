"""Whatever a client sends, it gets an answer or an error of its own making: never a 500."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.completions import CompletionRequest
from leoserve.api.protocol.faults import field_path

from .conftest import Running
from .test_errors import error_of

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([0, 1, -1, 0.5, "", "auto", "none", 2**31, 2**63, -(2**63)]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "x"])},
        optional={"content": st.text(max_size=10) | VALUES, "name": VALUES, "tool_calls": VALUES},
    ),
    max_size=3,
)
PROMPTS = (
    st.text(max_size=10)
    | st.lists(st.text(max_size=5), max_size=3)
    | st.lists(st.integers(-2, 345), max_size=4)
    | st.lists(st.lists(st.integers(-2, 345), max_size=3), max_size=3)
    | VALUES
)


def bodies(model: type[ChatRequest | CompletionRequest], **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A body with plausible required fields, and some of the others with anything in them."""
    others = {name: VALUES for name in model.model_fields if name not in known | {"model": None}}
    return st.fixed_dictionaries({"model": st.just("leo")} | known, optional=others | {"unknown": VALUES})


FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def check(server: Running, path: str, body: dict[str, Any]) -> None:
    answer = await server.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    if answer.status_code == 200:
        assert answer.content
    else:
        assert answer.status_code == 400, (answer.text, body)
        error_of(answer)


@FUZZ
@given(body=bodies(ChatRequest, messages=MESSAGES))
async def test_no_chat_body_breaks_the_server(server: Running, body: dict[str, Any]) -> None:
    await check(server, "/v1/chat/completions", body)


@FUZZ
@given(body=bodies(CompletionRequest, prompt=PROMPTS))
async def test_no_completion_body_breaks_the_server(server: Running, body: dict[str, Any]) -> None:
    await check(server, "/v1/completions", body)


@FUZZ
@given(field=st.sampled_from(sorted(ChatRequest.model_fields)), value=VALUES)
async def test_no_single_field_breaks_a_chat(server: Running, field: str, value: Any) -> None:
    body = {"model": "leo", "messages": [{"role": "user", "content": "Hallo"}], "max_tokens": 4}
    answer = await server.http.post("/v1/chat/completions", content=json.dumps(body | {field: value}))
    assert answer.status_code in (200, 400, 404), (field, value, answer.text)


VALID = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 2**31 - 1),
    "min_p": st.floats(0, 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.01, 100),
    "logit_bias": st.dictionaries(st.integers(0, 341).map(str), st.floats(-100, 100), max_size=3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "n": st.integers(1, 4),
    "stop": st.text(min_size=1, max_size=5) | st.lists(st.text(min_size=1, max_size=5), max_size=4),
    "stop_token_ids": st.lists(st.integers(0, 341), max_size=3),
    "allowed_token_ids": st.lists(st.integers(0, 341), min_size=1, max_size=3),
    "bad_words": st.lists(st.text(min_size=1, max_size=5), max_size=3),
    "include_stop_str_in_output": st.booleans(),
    "ignore_eos": st.booleans(),
    "min_tokens": st.integers(0, 5),
    "prompt_logprobs": st.integers(0, 20),
    "truncate_prompt_tokens": st.integers(-1, 30).filter(lambda keep: keep != 0),
    "skip_special_tokens": st.booleans(),
    "return_token_ids": st.booleans(),
    "priority": st.integers(-(2**31), 2**31 - 1),
    "cache_salt": st.text(min_size=1, max_size=5),
    "stream": st.booleans(),
    "user": st.text(max_size=5),
}


@FUZZ
@given(
    body=st.fixed_dictionaries({}, optional=VALID),
    content=st.text(max_size=20),
    logprobs=st.none() | st.integers(0, 20),
)
async def test_whatever_is_within_the_ranges_is_answered(
    server: Running, body: dict[str, Any], content: str, logprobs: int | None
) -> None:
    told = {} if logprobs is None else {"logprobs": True, "top_logprobs": logprobs}
    messages = [{"role": "user", "content": content}]
    for answer in (
        await server.chat(**body, **told, messages=messages, max_tokens=6),
        await server.complete(**body, prompt=content, logprobs=logprobs, echo=logprobs == 1, max_tokens=6),
    ):
        assert answer.status_code == 200, (answer.text, body)
        assert '{"error"' not in answer.text


@FUZZ
@given(raw=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
async def test_no_bytes_break_the_server(server: Running, raw: bytes) -> None:
    answer = await server.http.post("/v1/completions", content=raw)
    assert answer.status_code == 400
    error_of(answer)


def test_a_fault_is_named_as_the_client_wrote_the_field() -> None:
    assert field_path(("messages", 0, "content", "<parts>", 1, "text")) == "messages[0].content[1].text"
    assert field_path(("prompt", "<tokens>", 3)) == "prompt[3]"
    assert field_path(()) == ""
