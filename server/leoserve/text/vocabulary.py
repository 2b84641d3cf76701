"""The bytes of every token, read from the decoder that a tokenizer.json describes."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class UnsupportedDecoder(ValueError):
    """A decoder whose tokens have no bytes of their own."""


def _replace_each(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD a byte, as byte-fallback decoders give it, where Python's own gives one a sequence."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("leoserve-each-byte", _replace_each)


class Vocabulary:
    """What each token adds to a text.

    pieces: bytes by id, with control tokens spelled out; b"" where an id has no token
    shown: the same with control tokens left out
    texts, shown_texts: the same as text; None where the bytes are parts of characters
    leading_spaces: how many spaces at a text's beginning the decoder drops
    invalid_bytes: the codec error handler for bytes that are no UTF-8

    A byte-fallback decoder turns a whole run of byte tokens into U+FFFD when any byte of it is invalid. Text that
    streams cannot take back characters already sent, so here only the invalid bytes of a run become U+FFFD; valid text,
    and runs without a valid character, are the same.
    """

    def __init__(self, ids: Mapping[str, int], special: Iterable[int], decoder: Mapping[str, Any] | None) -> None:
        """`ids`: all tokens; `decoder`: the decoder of a tokenizer.json. Raises UnsupportedDecoder."""
        steps = _flatten(decoder)
        kinds = {step["type"] for step in steps}
        if not kinds & {"ByteLevel", "ByteFallback", "Replace", "Fuse", "Metaspace"}:
            raise UnsupportedDecoder(f"decoder {sorted(kinds) or 'none'}")
        self.byte_level = "ByteLevel" in kinds
        self.byte_fallback = "ByteFallback" in kinds
        self.leading_spaces = _leading_spaces(steps)
        self.invalid_bytes = "leoserve-each-byte" if self.byte_fallback else "replace"
        replacements = _replacements(steps)
        self.size = max(ids.values()) + 1
        self.pieces = [b""] * self.size
        for token, number in ids.items():
            self.pieces[number] = self._bytes(token, replacements)
        self.shown = list(self.pieces)
        for number in special:
            self.shown[number] = b""

    @cached_property
    def texts(self) -> list[str | None]:
        return [_whole(piece) for piece in self.pieces]

    @cached_property
    def shown_texts(self) -> list[str | None]:
        return [_whole(piece) for piece in self.shown]

    def _bytes(self, token: str, replacements: list[tuple[str, str]]) -> bytes:
        if self.byte_level:
            try:
                return bytes([BYTE_OF_CHARACTER[character] for character in token])
            except KeyError:
                return token.encode()
        for old, new in replacements:
            token = token.replace(old, new)
        if self.byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.encode()


def _whole(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        known = {"ByteLevel", "ByteFallback", "Replace", "Fuse", "Metaspace", "Strip"}
        if decoder["type"] not in known:
            raise UnsupportedDecoder(f"decoder {decoder['type']}")
        return [decoder]
    return [step for part in decoder["decoders"] for step in _flatten(part)]


def _leading_spaces(steps: list[Mapping[str, Any]]) -> int:
    spaces = 0
    for step in steps:
        if step["type"] == "Strip":
            if step["content"] != " " or step["stop"]:
                raise UnsupportedDecoder(f"decoder {dict(step)}")
            spaces += step["start"]
        elif step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            spaces += 1
    return spaces


def _replacements(steps: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    found = []
    for step in steps:
        if step["type"] == "Replace":
            if "String" not in step["pattern"]:
                raise UnsupportedDecoder(f"decoder {dict(step)}")
            found.append((step["pattern"]["String"], step["content"]))
        elif step["type"] == "Metaspace":
            found.append((step["replacement"], " "))
    return found


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes with (GPT-2): printable Latin-1 stands for itself, the other
    bytes for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + number): byte for number, byte in enumerate(others)})
    return alphabet


BYTE_OF_CHARACTER = _byte_alphabet()
