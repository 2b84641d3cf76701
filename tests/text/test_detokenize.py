from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve.text.detokenize import Detokenizer
from leoserve.text.tokenizer import Tokenizer

TEXTS = st.text(alphabet=st.sampled_from("  abcdeßäöü\n<|im_end>€😀👩‍👩‍👧日本"), max_size=30)


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Ours and the library's own tokenizer."""
    return Tokenizer.load(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def streamed(detokenizer: Detokenizer, ids: list[int]) -> str:
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


@settings(max_examples=200, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_streamed_text_is_the_whole_decode(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], data: st.DataObject, skip: bool
) -> None:
    ours, _ = pair
    ids = data.draw(st.lists(st.integers(0, ours.size - 1), max_size=30))
    assert streamed(Detokenizer(ours, skip_special_tokens=skip), ids) == ours.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_decode_is_the_librarys(pair: tuple[Tokenizer, tokenizers.Tokenizer], data: st.DataObject, skip: bool) -> None:
    """For byte-level tokenizers always; with byte fallback where no run of byte tokens mixes valid and invalid."""
    ours, library = pair
    ids = data.draw(st.lists(st.integers(0, ours.size - 1), max_size=30))
    if ours.vocabulary.byte_fallback:
        ids = [token for token in ids if not is_byte(ours, token)]
    assert ours.decode(ids, skip_special_tokens=skip) == library.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, cut=st.integers(0, 3), skip=st.booleans())
def test_encoded_text_decodes_as_the_library_does_even_when_cut_in_a_character(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str, cut: int, skip: bool
) -> None:
    ours, library = pair
    ids = ours.encode(text)
    if ours.vocabulary.byte_level:
        ids = ids[: len(ids) - cut]
    expected = library.decode(ids, skip_special_tokens=skip)
    assert ours.decode(ids, skip_special_tokens=skip) == expected
    assert streamed(Detokenizer(ours, skip_special_tokens=skip), ids) == expected


@settings(max_examples=100, deadline=None)
@given(prompt=TEXTS, answer=st.data())
def test_a_completion_continues_its_prompt(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], prompt: str, answer: st.DataObject
) -> None:
    ours, _ = pair
    prompt_ids = ours.encode(prompt)
    ids = answer.draw(st.lists(st.integers(0, ours.size - 1), max_size=20))
    completion = streamed(Detokenizer(ours, prompt_ids=prompt_ids), ids)
    assert ours.decode(prompt_ids) + completion == ours.decode(prompt_ids + ids)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_no_piece_shows_half_a_character(pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str) -> None:
    ours, _ = pair
    detokenizer = Detokenizer(ours)
    assert "\ufffd" not in "".join(map(detokenizer.push, ours.encode(text)))
    assert detokenizer.flush() == ""


def is_byte(tokenizer: Tokenizer, token: int) -> bool:
    data = tokenizer.token_bytes(token)
    return len(data) == 1 and tokenizer.token_id(f"<0x{data[0]:02X}>") == token


def test_an_answer_begins_without_the_tokenizers_space(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["llama2"])
    ids = tokenizer.encode("Die Stadt", add_bos=False)
    assert streamed(Detokenizer(tokenizer), ids) == "Die Stadt"
    assert streamed(Detokenizer(tokenizer, prompt_ids=tokenizer.encode("Ja.")), ids) == " Die Stadt"
    assert streamed(Detokenizer(tokenizer, prompt_ids=tokenizer.encode("")), ids) == "Die Stadt"


def test_bytes_that_are_no_text_become_one_replacement_each(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["llama2"])
    euro = [token for byte in "€".encode() if (token := tokenizer.token_id(f"<0x{byte:02X}>")) is not None]
    library = tokenizers.Tokenizer.from_file(str(folders["llama2"] / "tokenizer.json"))
    for ids in (euro, euro[:2], euro[1:], [euro[0], euro[0]]):
        assert streamed(Detokenizer(tokenizer), ids) == library.decode(ids)
    assert streamed(Detokenizer(tokenizer), [*euro, euro[0]]) == "€\ufffd"


def test_a_character_begun_in_the_prompt_is_completed(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        tokenizer = Tokenizer.load(folder)
        ids = tokenizer.encode("x😀")
        detokenizer = Detokenizer(tokenizer, prompt_ids=ids[:-1])
        assert detokenizer.push(ids[-1]) == "😀"


def test_special_tokens_are_shown_when_asked_for(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["metaspace"])
    ids = tokenizer.encode("a<|im_end|>", add_bos=False, control_tokens=True)
    assert streamed(Detokenizer(tokenizer), ids) == "a"
    assert streamed(Detokenizer(tokenizer, skip_special_tokens=False), ids) == "a<|im_end|>"


def test_an_id_without_a_token_adds_nothing(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["metaspace"])
    assert Detokenizer(tokenizer).push(tokenizer.size + 5) == ""
