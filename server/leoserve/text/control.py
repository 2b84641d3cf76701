"""Control tokens spelled in a user's text: found before a chat template sees it, and kept text.

A mark (a character that occurs nowhere else) goes before every place of a user's text where a control token begins. The
template carries the marks along; the tokenizer reads the character after a mark as text and never as a token's start.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from itertools import chain

_PRIVATE = chain(range(0xF8FF, 0xE000, -1), range(0x10FFFD, 0xF0000, -1))
_PRIVATE_CHARACTERS = "".join(map(chr, _PRIVATE))
_MARKER = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")


def is_marker(token: str) -> bool:
    """Whether a token is spelled like a control token: <|im_end|>, <SEP>, [INST]."""
    return _MARKER.fullmatch(token) is not None


class ControlTokens:
    """The spellings that must not become tokens when a user writes them."""

    def __init__(self, spellings: Iterable[str]) -> None:
        self.spellings = frozenset(spellings)
        self._forwards = sorted(self.spellings)
        self._backwards = sorted(spelling[::-1] for spelling in self.spellings)
        lengths: dict[str, set[int]] = {}  # by the first characters: a few lengths to try instead of all tokens
        for spelling in self.spellings:
            lengths.setdefault(spelling[:3], set()).add(len(spelling))
        for head in lengths:
            for shorter in (head[:1], head[:2]):
                lengths[head] |= lengths.get(shorter, set())
        self._lengths = {head: tuple(sorted(found)) for head, found in lengths.items()}
        heads = "|".join(re.escape(head) for head in sorted(lengths, key=len, reverse=True))
        self._heads = re.compile(f"(?=({heads}))" if heads else "(?!)", re.DOTALL)
        self._longest = max(map(len, self.spellings), default=0)

    def mark(self, text: str, mark: str, *, edges: bool) -> str:
        """`text` with `mark` before every control token in it, overlapping ones too.

        `edges`: also where a control token could arise from the end or the beginning of `text` together with what a
        template puts beside it.
        """
        places = set(self._starts(text))
        if edges and text:
            places.update(self._edges(text))
        if not places:
            return text
        ends = [*sorted(places), len(text)]
        pieces = [text[: ends[0]]]
        for start, end in zip(ends, ends[1:], strict=False):
            pieces += (mark, text[start:end])
        return "".join(pieces)

    def _starts(self, text: str) -> Iterable[int]:
        spellings = self.spellings
        for match in self._heads.finditer(text):
            start = match.start()
            for length in self._lengths[match[1]]:
                if text[start : start + length] in spellings:
                    yield start
                    break

    def _edges(self, text: str) -> Iterable[int]:
        """Templates may trim a text, so its edges are those with and without surrounding space."""
        for start, end in {(0, len(text)), (len(text) - len(text.lstrip()), len(text.rstrip()))}:
            part = text[start:end]
            longest = min(self._longest - 1, len(part))
            ends_one = any(_begins(self._backwards, part[:length][::-1]) for length in range(1, longest + 1))
            if ends_one or (0 < len(part) < self._longest and any(part in spelling for spelling in self.spellings)):
                yield start
            for length in range(1, longest + 1):
                if _begins(self._forwards, part[len(part) - length :]):
                    yield end - length


def unused_character(texts: Iterable[str], *, without: str = "") -> str:
    """A private-use character that occurs in none of `texts` nor in `without`."""
    used = set(without)
    for text in texts:
        if not text.isascii():
            used.update(text)
    return next(character for character in _PRIVATE_CHARACTERS if character not in used)


def _begins(ordered: list[str], part: str) -> bool:
    """Whether one of the sorted strings is longer than `part` and begins with it."""
    place = bisect_left(ordered, part)
    return any(other != part and other.startswith(part) for other in ordered[place : place + 2])
