"""The short way from a delta to the bytes of its events gives what the long way gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leoserve.api.answer import Frames, Shape, event
from leoserve.api.chat import ChatShape
from leoserve.api.completions import CompletionShape
from leoserve.api.generation import Generation
from leoserve.api.protocol.base import StreamOptions
from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.completions import CompletionRequest
from leoserve.api.record import Record
from leoserve.api.stream import Choice, Delta, TextOptions, Token
from leoserve.engine.request import Request, SamplingParams, TokenLogprobs, TokenOutput
from leoserve.text.calls import CallPiece
from leoserve.text.tokenizer import Tokenizer

from .conftest import Running, pieces

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
TOKENS = st.lists(st.builds(Token, st.just(70), st.just(0), st.just(1), st.just(TokenLogprobs(-1.0, 1, [], []))))
CALLS = st.lists(st.builds(CallPiece, st.just(0), st.just(4), st.none(), st.just("{}")), max_size=1)
DELTAS = st.lists(
    st.builds(
        Delta,
        st.integers(0, 1),
        st.booleans(),
        TEXT,
        st.just([]) | CALLS,
        st.just([]) | TOKENS,
        st.sampled_from([None, None, "stop", "length"]),
    ),
    max_size=12,
)
BODIES: list[dict[str, Any]] = [{}, {"return_token_ids": True}, {"model": 'a "model" of \\ its own'}]
OPTIONS: list[dict[str, Any]] = [{}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]


def shape_of(server: Running, kind: str, fields: dict[str, Any]) -> Shape:
    """A stream of two answers."""
    request = Request(request_id="r", prompt=[1, 5], params=SamplingParams(max_tokens=9, n=2), arrival=0.0)
    record = Record(server.context.metrics, "id", kind, id="answer-1")
    generation = Generation(server.context, record, [request], TextOptions())
    if kind == "chat":
        messages = [{"role": "user", "content": "Hallo"}]
        chat = {"model": "leo", "messages": messages, "n": 2, "stream": True, **fields}
        return ChatShape(ChatRequest.model_validate_json(json.dumps(chat)), generation)
    completion = {"model": "leo", "prompt": "Hallo", "n": 2, "stream": True, **fields}
    return CompletionShape(CompletionRequest.model_validate_json(json.dumps(completion)), generation)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("fields", [*BODIES, {"logprobs": 2}])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deltas=DELTAS)
async def test_completions(
    server: Running, fields: dict[str, Any], options: dict[str, Any], deltas: list[Delta]
) -> None:
    check(shape_of(server, "completions", fields), options, deltas)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("fields", [*BODIES, {"logprobs": True}])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deltas=DELTAS)
async def test_chats(server: Running, fields: dict[str, Any], options: dict[str, Any], deltas: list[Delta]) -> None:
    check(shape_of(server, "chat", fields), options, deltas)


def check(shape: Shape, options: dict[str, Any], deltas: list[Delta]) -> None:
    wanted = StreamOptions.model_validate(options)
    record = shape.generation.record  # type: ignore[attr-defined]
    frames = Frames(shape, wanted, record)
    for delta in deltas:
        told = frames.of(delta)
        assert told == b"".join([event(chunk, wanted, record) for chunk in shape.chunks(delta)])
        record.generated_tokens += 1


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="Die ß😀\n", max_size=12),
    odd=st.lists(st.integers(0, 344), max_size=6),
    burst=st.integers(1, 3),
)
def test_text_that_needs_no_look_is_the_text_that_gets_one(
    tokenizer: Tokenizer, text: str, odd: list[int], burst: int
) -> None:
    """Reporting token ids makes every token go the long way."""
    tokens = [*pieces(tokenizer, text), *odd, *pieces(tokenizer, text), 70]
    short, long = (Choice(0, tokenizer, TextOptions(token_ids=each), prompt=[1, 5, 240]) for each in (False, True))
    for start in range(0, len(tokens), burst):
        finish = "length" if start + burst >= len(tokens) else None
        output = TokenOutput("r", 0, tokens[start : start + burst], finish_reason=finish)  # type: ignore[arg-type]
        one, other = short.push(output), long.push(output)
        assert (one.first, one.text, one.finish) == (other.first, other.text, other.finish)
        assert short.generated == long.generated
