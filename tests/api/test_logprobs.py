"""The shapes in which log-probabilities are told."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leoserve.api.logprobs import CompletionLogprobs, chat_logprobs, finite, prompt_logprobs, prompt_offsets
from leoserve.api.stream import Token
from leoserve.engine.request import TokenLogprobs
from leoserve.text.tokenizer import Tokenizer


def test_what_json_cannot_tell_becomes_openais_least_value() -> None:
    assert [finite(value) for value in (-math.inf, math.nan, -1e9, -1.5)] == [-9999.0, -9999.0, -9999.0, -1.5]


def test_an_impossible_token_is_told_as_a_number(tokenizer: Tokenizer) -> None:
    its = TokenLogprobs(-math.inf, 300, [5, 6], [-0.1, -math.inf])
    told = chat_logprobs(tokenizer, [Token(5, 0, 1, its)], 2)
    text = msgspec.json.encode(told).decode()
    assert json.loads(text) == told
    assert told["content"][0]["logprob"] == -9999.0
    assert told["content"][0]["top_logprobs"][1]["logprob"] == -9999.0


def test_a_token_that_is_part_of_a_character_has_bytes_and_a_name(tokenizer: Tokenizer) -> None:
    byte = tokenizer.token_id("<0xF0>")
    assert byte is not None
    told = chat_logprobs(tokenizer, [Token(byte, 0, 0, TokenLogprobs(-1.0, 1, [], []))], 0)
    assert told["content"] == [{"token": "bytes:\\xf0", "bytes": [0xF0], "logprob": -1.0, "top_logprobs": []}]


def test_the_chosen_token_is_among_the_alternatives_of_a_completion(tokenizer: Tokenizer) -> None:
    told = CompletionLogprobs(tokenizer, 1)
    told.add(300, 0, TokenLogprobs(-3.0, 9, [301], [-0.1]))
    assert told.top_logprobs == [{tokenizer.token_text(301): -0.1, tokenizer.token_text(300): -3.0}]


def test_a_prompts_tokens_are_told_by_id_with_their_ranks(tokenizer: Tokenizer) -> None:
    told = prompt_logprobs(tokenizer, [1, 300], [None, TokenLogprobs(-3.0, 9, [301, 302], [-0.1, -0.2])], 2)
    assert told[0] is None
    assert told[1] is not None
    assert {key: (entry["logprob"], entry["rank"]) for key, entry in told[1].items()} == {
        "300": (-3.0, 9),
        "301": (-0.1, 1),
        "302": (-0.2, 2),
    }


TEXTS = st.lists(
    st.sampled_from([" ", "  ", "Köln", "und", "\n", "😀", "<|im_end|>", "<s>", "x", "ß."]), max_size=8
).map("".join)
shared_tokenizer = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@shared_tokenizer
@given(text=TEXTS.filter(lambda text: "<s>" not in text[1:]))
def test_offsets_point_to_the_tokens_of_a_written_prompt(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, control_tokens=True)
    offsets = list(prompt_offsets(tokenizer, ids, text))
    assert offsets == sorted(offsets)
    for token, offset, end in zip(ids, offsets, [*offsets[1:], len(text)], strict=True):
        shown = text[offset:end]
        name = tokenizer.token_text(token)
        assert shown in (name, name.removeprefix(" "), "", "<s> ") or name.startswith("bytes:"), (token, shown)
    if "😀" not in text:  # its bytes are tokens whose text nobody can show
        assert "".join(text[a:b] for a, b in zip(offsets, [*offsets[1:], len(text)], strict=True)) == text[offsets[0] :]
        assert not offsets or offsets[0] == 0


@shared_tokenizer
@given(text=TEXTS)
def test_offsets_point_into_the_decoded_text_of_a_prompt_of_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, control_tokens=True)
    for number, offset in enumerate(prompt_offsets(tokenizer, ids, None)):
        assert tokenizer.decode(ids[:number])[:offset] == tokenizer.decode(ids)[:offset]
        assert offset >= len(tokenizer.decode(ids[:number]).rstrip("\ufffd"))


@pytest.mark.parametrize(("written", "first"), [("Hallo", 0), ("<s>Hallo", 3), ("<s> Hallo", 3)])
def test_a_bos_counts_where_the_client_wrote_it(tokenizer: Tokenizer, written: str, first: int) -> None:
    ids = tokenizer.encode(written, control_tokens=True)
    assert ids == tokenizer.encode("Hallo")
    assert list(prompt_offsets(tokenizer, ids, written))[:2] == [0, first]
