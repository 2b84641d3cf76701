from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve.text.control import ControlTokens, is_marker, unused_character

SPELLINGS = ("<s>", "</s>", "<|im_end|>", "<|im_end", "s><s", "§", "<<")
TEXT = st.lists(st.sampled_from([*SPELLINGS, "<", "|", ">", "s", "im_end", " ", "x"]), max_size=8).map("".join)


@settings(deadline=None)
@given(text=TEXT)
def test_every_place_where_a_control_token_begins_is_marked(text: str) -> None:
    expected = "".join(
        ("#" if any(text.startswith(spelling, place) for spelling in SPELLINGS) else "") + character
        for place, character in enumerate(text)
    )
    assert ControlTokens(SPELLINGS).mark(text, "#", edges=False) == expected


@settings(deadline=None)
@given(
    before=TEXT, text=TEXT.filter(str.strip), after=TEXT, spaces=st.sampled_from(["", " ", "\n"]), trims=st.booleans()
)
def test_no_control_token_arises_from_a_marked_text_and_what_stands_beside_it(
    before: str, text: str, after: str, spaces: str, trims: bool
) -> None:
    marked = ControlTokens(SPELLINGS).mark(spaces + text + spaces, "#", edges=True)
    seen = as_the_tokenizer_sees(marked.strip() if trims else marked)
    whole = before + seen + after
    start, end = len(before), len(before) + len(seen)
    for spelling in SPELLINGS:
        for place in range(len(whole)):
            if whole.startswith(spelling, place):
                assert place + len(spelling) <= start or place >= end


def as_the_tokenizer_sees(marked: str) -> str:
    """The text with the character behind each mark hidden."""
    head, *parts = marked.split("#")
    return "#".join([head, *(part[1:] for part in parts)])


def test_ordinary_text_is_not_touched() -> None:
    text = "Ist 3 < 5? Ja, und 5 > 3.\n> Zitat"
    assert ControlTokens(SPELLINGS).mark(text, "#", edges=True) == text
    assert ControlTokens(()).mark("<s>", "#", edges=True) == "<s>"


def test_an_unused_character_is_one_that_no_text_has() -> None:
    first = unused_character(["abc"])
    second = unused_character([f"a{first}", "ä"])
    assert second not in (first, "ä")
    assert unused_character(["abc"], without=first) == second


@pytest.mark.parametrize(
    ("token", "expected"),
    [("<|im_end|>", True), ("<SEP>", True), ("[INST]", True), ("Wort", False), ("< >", False), ("  ", False)],
)
def test_a_marker_is_told_from_a_word(token: str, expected: bool) -> None:
    assert is_marker(token) == expected
