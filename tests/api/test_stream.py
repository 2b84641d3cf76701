"""From tokens to text, one choice at a time."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve.api.stream import Choice, Delta, TextOptions
from leoserve.engine.request import TokenLogprobs, TokenOutput
from leoserve.text.tokenizer import Tokenizer

from .conftest import pieces


def run(tokenizer: Tokenizer, tokens: Sequence[int], options: TextOptions, *, burst: int = 1) -> list[Delta]:
    """All deltas of a choice whose tokens come `burst` at a time, the last ending it by length."""
    choice = Choice(0, tokenizer, options, prompt=[13])
    deltas = []
    for start in range(0, len(tokens), burst):
        ids = list(tokens[start : start + burst])
        logprobs = [TokenLogprobs(-1.0, 1, [], []) for _ in ids]
        finish = "length" if start + burst >= len(tokens) else None
        deltas.append(choice.push(TokenOutput("r", 0, ids, logprobs, finish)))  # type: ignore[arg-type]
        if choice.finish is not None:
            break
    return deltas


TEXTS = st.text(alphabet="Die Hauptsßü🦁\n", max_size=30)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, stops=st.lists(st.text("Diesü🦁 ", min_size=1, max_size=4), max_size=3), burst=st.integers(1, 4))
def test_the_text_is_that_of_the_tokens_up_to_the_first_complete_stop_string(
    tokenizer: Tokenizer, text: str, stops: list[str], burst: int
) -> None:
    tokens = pieces(tokenizer, text)
    if not tokens:
        return
    deltas = run(tokenizer, tokens, TextOptions(stop=stops, logprobs=0), burst=burst)
    shown = "".join(delta.text for delta in deltas)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    whole = text[: min(ends)] if ends else text
    longest = max((stop for stop in stops if whole.endswith(stop)), key=len, default="") if ends else ""
    assert shown == whole[: len(whole) - len(longest)]
    assert deltas[-1].finish == ("stop" if ends else "length")
    told = [token for delta in deltas for token in delta.tokens]
    assert [token.id for token in told] == tokens[: len(told)], "each token once, in order"
    if not ends:
        assert len(told) == len(tokens)
    else:
        assert all(token.start < len(shown) for token in told)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(3, 258), min_size=1, max_size=12), burst=st.integers(1, 3))
def test_any_bytes_come_out_without_loss_or_repetition(tokenizer: Tokenizer, tokens: list[int], burst: int) -> None:
    deltas = run(tokenizer, tokens, TextOptions(logprobs=0), burst=burst)
    data = bytes(token - 3 for token in tokens)
    text = "".join(delta.text for delta in deltas)
    try:
        assert text == data.decode()
    except UnicodeDecodeError:
        assert "\ufffd" in text
    assert [token.id for delta in deltas for token in delta.tokens] == tokens
    assert deltas[0].first
    assert not any(delta.first for delta in deltas[1:])


def test_token_ids_keep_what_a_stop_string_hides(tokenizer: Tokenizer) -> None:
    tokens = pieces(tokenizer, "Die Hauptstadt von Frankreich")
    for wanted in (True, False):
        deltas = run(tokenizer, tokens, TextOptions(stop=[" von"], logprobs=0, token_ids=wanted))
        told = [token.id for delta in deltas for token in delta.tokens]
        assert "".join(delta.text for delta in deltas) == "Die Hauptstadt"
        shown = pieces(tokenizer, "Die Hauptstadt")
        assert told[: len(shown)] == shown
        assert (len(told) > len(shown)) == wanted


def test_no_tokens_are_kept_unless_asked_for(tokenizer: Tokenizer) -> None:
    deltas = run(tokenizer, pieces(tokenizer, "Paris"), TextOptions())
    assert not any(delta.tokens for delta in deltas)


def test_an_answer_without_tokens_ends_with_length(tokenizer: Tokenizer) -> None:
    choice = Choice(0, tokenizer, TextOptions(), prompt=[])
    delta = choice.push(TokenOutput("r", 0, [], None, "length"))
    assert (delta.text, delta.first, delta.finish, choice.generated) == ("", True, "length", 0)
