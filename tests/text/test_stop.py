from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve.text.stop import StopStrings


def reference(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """The whole text at once: the match that ends first, and of these the longest."""
    matches = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not matches:
        return text, None
    end, _, stop = min(matches)
    return text[: end if include else end - len(stop)], stop


def chunks(text: str, cuts: list[int]) -> Iterator[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    for start, end in zip(places, places[1:], strict=False):
        yield text[start:end]


@settings(deadline=None)
@given(
    text=st.text(alphabet="abc\n", max_size=60),
    stops=st.lists(st.text(alphabet="abc\n", min_size=1, max_size=6), max_size=4),
    cuts=st.lists(st.integers(0, 60), max_size=20),
    include=st.booleans(),
)
def test_any_chunking_gives_what_the_whole_text_gives(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    expected, expected_stop = reference(text, stops, include=include)
    streams = StopStrings(stops, include=include)
    sent, found = "", None
    for chunk in chunks(text, cuts):
        piece, found = streams.push(chunk)
        sent += piece
        assert expected.startswith(sent), "a part of a stop string was shown"
        if found:
            break
    assert found == expected_stop
    assert sent + streams.flush() == expected


@settings(deadline=None)
@given(text=st.text(alphabet="ab", max_size=40), stop=st.text(alphabet="ab", min_size=1, max_size=5))
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stop: str) -> None:
    streams = StopStrings([stop])
    sent = ""
    for end, character in enumerate(text, 1):
        piece, found = streams.push(character)
        sent += piece
        if found:
            return
        held = text[len(sent) : end]
        assert stop.startswith(held)
        assert len(held) == max(k for k in range(len(stop)) if k <= end and text[end - k : end] == stop[:k])


def test_nothing_follows_a_match() -> None:
    streams = StopStrings(["Ende"])
    assert streams.push("Das ist das Ende, oder") == ("Das ist das ", "Ende")
    assert streams.push("mehr") == ("", "Ende")
    assert streams.flush() == ""
    assert streams.found == "Ende"


def test_the_longest_of_two_that_end_together_wins() -> None:
    assert StopStrings(["b", "ab"]).push("xab") == ("x", "ab")


def test_the_first_complete_match_wins_over_one_that_began_earlier() -> None:
    assert StopStrings(["abcd", "c"]).push("abcd") == ("ab", "c")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings([""])


def test_without_stop_strings_text_passes_through() -> None:
    assert StopStrings([]).push("abc") == ("abc", None)
