"""What follows an answer through its grammar: llguidance's parsers, and the tokenizer as they see it.

An Earley parser over a lexer of regular-expression derivatives, walked along a trie of all tokens
(github.com/guidance-ai/llguidance).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import llguidance
import numpy as np
from numpy.typing import NDArray

from leoserve.model.step import TokenTable

MAX_FORCED = 200  # bytes of a text without a choice that are spelled ahead
TEXT_BYTES = [bytes([byte]) for byte in (*range(0xC0), *range(0xC2, 0xF5))]  # those that UTF-8 has (RFC 3629)


class Parser(Protocol):
    """What llguidance.LLMatcher has, as far as it is used here."""

    def consume_token(self, token: int, /) -> bool: ...
    def unsafe_compute_mask_ptr(self, address: int, size: int, /) -> None: ...
    def is_stopped(self) -> bool: ...
    def is_error(self) -> bool: ...
    def get_error(self) -> str: ...
    def deep_copy(self) -> Self: ...


class Follower(Protocol):
    """Moves several parsers on and makes their masks, while their thread goes on. See leokernels.native.Follower."""

    def address_of(self, parser: Parser, /) -> int: ...
    def begin(self, rows: NDArray[np.void], /) -> None: ...
    def ended(self, *, wait: bool) -> list[int] | None: ...


class Parsers(Protocol):
    """Makes parsers of grammars in llguidance's JSON, within limits."""

    @property
    def follower(self) -> Follower | None:
        """What moves the parsers on; None: nothing does."""
        ...

    def new(self, source: str, limits: Mapping[str, Any], /) -> Parser: ...


class PackagedParsers:
    """llguidance's own classes."""

    follower: Follower | None = None

    def __init__(self, spelling: Spelling) -> None:
        wrapped = llguidance.TokenizerWrapper(spelling)
        self._tokenizer = llguidance.LLTokenizer(wrapped, eos_token=spelling.ends)

    def new(self, source: str, limits: Mapping[str, Any]) -> Parser:
        bounds = llguidance.LLParserLimits(**limits, verbose_errors=False)
        return llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=bounds)


class Spelling:
    """A tokenizer for llguidance: the bytes of its tokens, and a way to spell what a grammar leaves no choice about.

    That takes the longest token each time, without a regard for merges: what comes before is not known here.
    """

    def __init__(self, table: TokenTable) -> None:
        self.tokens = list(table.pieces)
        self.special_token_ids = list(table.control)
        self.ends = list(table.ends)
        if not self.ends:  # one that the network has no row for, so that no answer is ended by it
            self.ends = [len(self.tokens)]
            self.special_token_ids += self.ends
            self.tokens.append(b"<end>")
        self.eos_token_id = self.ends[0]
        self.bos_token_id = None
        control = set(self.special_token_ids)
        self._ids = {piece: token for token, piece in enumerate(self.tokens) if piece and token not in control}
        self._longest = max(map(len, self._ids), default=0)

    @property
    def has_all_text(self) -> bool:
        """Whether any text can be spelled."""
        return all(byte in self._ids for byte in TEXT_BYTES)

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = []
        start, end = 0, min(len(text), MAX_FORCED)
        while start < end:
            sizes = range(min(self._longest, len(text) - start), 0, -1)
            pieces = (text[start : start + size] for size in sizes)
            token = next((self._ids[piece] for piece in pieces if piece in self._ids), None)
            if token is None:
                break
            ids.append(token)
            start += len(self.tokens[token])
        return ids
