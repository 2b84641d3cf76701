"""Whatever a client sends, it gets an answer or an error of its own making: never a 500."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leoserve.api.protocol.body import field_path
from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.completions import CompletionRequest

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
