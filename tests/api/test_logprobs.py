"""The shapes in which log-probabilities are told."""

from __future__ import annotations

import json
import math

import msgspec

from leoserve.api.logprobs import CompletionLogprobs, chat_logprobs, finite, prompt_logprobs
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
