"""Text from tokens as they come, never half a character.

A token's bytes do not depend on its neighbours (but for the space that a SentencePiece text begins with), so nothing is
ever decoded twice: most tokens are whole characters, whose text is known beforehand, and the bytes of the others are
kept until their character is complete.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leoserve.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one choice.

    Without a prompt the tokens are a text of their own, as `Tokenizer.decode` gives it: a SentencePiece tokenizer's
    leading space is dropped. After `prompt_ids` the text continues the prompt: its first space stays, and a character
    whose bytes begin in the prompt is completed.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()
    ) -> None:
        vocabulary = tokenizer.vocabulary
        self._pieces = vocabulary.shown if skip_special_tokens else vocabulary.pieces
        self._texts = vocabulary.shown_texts if skip_special_tokens else vocabulary.texts
        self._errors = vocabulary.invalid_bytes
        self._started = False  # whether the text's leading spaces are behind us
        self._to_strip = vocabulary.leading_spaces
        for token in prompt_ids:
            if self._started:
                break
            self._strip(self._piece(token))
        self._unfinished = _unfinished(b"".join(self._piece(token) for token in prompt_ids[-8:]))  # character's bytes

    def push(self, token: int) -> str:
        """The text that is certain now that `token` has come: '' while a character's bytes are incomplete."""
        if self._started and not self._unfinished and 0 <= token < len(self._texts):
            text = self._texts[token]
            if text is not None:
                return text
        piece = self._piece(token)
        if not self._started:
            piece = self._strip(piece)
        return self._decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for the bytes of an incomplete character."""
        return self._decode(b"", final=True)

    def _decode(self, piece: bytes, *, final: bool = False) -> str:
        data = self._unfinished + piece
        text, decoded = codecs.utf_8_decode(data, self._errors, final)
        self._unfinished = data[decoded:]
        return text

    def _piece(self, token: int) -> bytes:
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""

    def _strip(self, piece: bytes) -> bytes:
        """Drop the spaces that the tokenizer put before the text."""
        if not piece:
            return piece
        while self._to_strip and piece.startswith(b" "):
            piece = piece[1:]
            self._to_strip -= 1
        self._started = bool(piece) or not self._to_strip
        return piece


def _unfinished(data: bytes) -> bytes:
    """The bytes of an incomplete UTF-8 character at the end of `data`."""
    for length in range(1, min(4, len(data) + 1)):
        lead = data[-length]
        if lead >= 0xC0:
            wanted = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return data[-length:] if length < wanted else b""
        if lead < 0x80:
            break
    return b""
