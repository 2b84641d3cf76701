from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from leoserve.text.vocabulary import BYTE_OF_CHARACTER, UnsupportedDecoder, Vocabulary

IDS = {"▁a": 0, "b": 1, "<0xC3>": 2, "<0xa4>": 3, "</s>": 5}


def description(decoder: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoder
    decoded: dict[str, Any] = json.loads(tokenizer.to_str())["decoder"]
    return decoded


LLAMA = description(
    decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
)


def test_the_pieces_are_bytes_and_a_hole_is_empty() -> None:
    vocabulary = Vocabulary(IDS, [5], LLAMA)
    assert vocabulary.pieces == [b" a", b"b", b"\xc3", b"\xa4", b"", b"</s>"]
    assert vocabulary.shown == [b" a", b"b", b"\xc3", b"\xa4", b"", b""]
    assert vocabulary.leading_spaces == 1


def test_the_byte_alphabet_is_the_librarys() -> None:
    assert set(BYTE_OF_CHARACTER) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF_CHARACTER.values()) == list(range(256))
    for character, byte in BYTE_OF_CHARACTER.items():
        if byte < 0x80:
            assert decoders.ByteLevel().decode([character]) == chr(byte)


def test_a_metaspace_decoder_is_understood() -> None:
    vocabulary = Vocabulary({"▁a": 0}, [], description(decoders.Metaspace()))
    assert vocabulary.pieces == [b" a"]
    assert vocabulary.leading_spaces == 1


@pytest.mark.parametrize(
    "decoder", [decoders.WordPiece(), decoders.CTC(), decoders.BPEDecoder(), decoders.Strip("x", 1, 0)]
)
def test_a_decoder_whose_tokens_have_no_bytes_of_their_own_is_refused(decoder: Any) -> None:
    with pytest.raises(UnsupportedDecoder):
        Vocabulary(IDS, [], description(decoder))
    with pytest.raises(UnsupportedDecoder):
        Vocabulary(IDS, [], None)
