"""Moving the parsers of constrained answers on, with threads that have nothing to do; and spelling text in tokens."""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Sequence

import numpy as np

from leokernels.native.loading import library, pool

# The structures of leonative.h, field by field.
_PARSERS = struct.Struct("@2P")
_FOLLOW = struct.Struct("@2PqIi")
_WORDS = _FOLLOW.size // 4  # of 32 bits, of which the last is a row's state
_STOPPED = 2


class Follower:
    """Gives parsers their tokens and makes their masks, while the caller goes on.

    To be used by the thread that calls the library's other functions.
    """

    def __init__(self, commit: int, mask: int) -> None:
        """The addresses of a parser's functions, as LeoParsers has them. Raises RuntimeError where the library is
        missing."""
        self._address = library().follower_new(pool(), _PARSERS.pack(commit, mask))
        self._rows = ctypes.create_string_buffer(0)
        self._count = 0
        self._delete = weakref.finalize(self, library().follower_delete, self._address)  # waits; so at the process' end

    def begin(self, rows: Sequence[tuple[int, int, int, int]]) -> None:
        """Each row: the address of a parser, that of its mask, the mask's bytes, and the token that was chosen.

        A mask is all 0 of a parser that cannot go on, and stays as it was where nothing can follow the token. Parsers
        and masks must live, and nobody may use them, until `wait`. Waits for what was begun before.
        """
        self.wait()
        size = _FOLLOW.size
        if len(self._rows) < size * len(rows):
            self._rows = ctypes.create_string_buffer(2 * size * len(rows))
        for number, row in enumerate(rows):
            _FOLLOW.pack_into(self._rows, size * number, *row, 0)
        self._count = len(rows)
        library().follow(self._address, ctypes.addressof(self._rows), self._count)

    def is_done(self) -> bool:
        """Whether `wait` would not wait."""
        return not self._count or library().is_done(self._address) != 0

    def wait(self) -> list[int]:
        """Until all is done. The numbers of the rows of the last `begin` whose tokens nothing can follow."""
        if not self._count or not self._delete.alive:
            return []
        library().followed(self._address)
        states = np.frombuffer(memoryview(self._rows), np.int32, self._count * _WORDS)[_WORDS - 1 :: _WORDS]
        self._count = 0
        return np.flatnonzero(states & _STOPPED).tolist()


class Speller:
    """Spells text in the tokens of a vocabulary, the longest that fits each time. Any thread may use it."""

    def __init__(self, pieces: Sequence[bytes], most: int) -> None:
        """By id the bytes of a token, b"" where it is none of text; of a text about `most` bytes are spelled."""
        lengths = np.array([len(piece) for piece in pieces], dtype=np.uint32)
        self.address = library().speller_new(b"".join(pieces), lengths.tobytes(), len(pieces), most)
        # Not at the process' end: a thread may be using it.
        weakref.finalize(self, library().speller_delete, self.address).atexit = False

    @property
    def function(self) -> int:
        """The address of a function that spells, with `address` for its first argument (llguidance's LlgTokenizeFn)."""
        return ctypes.cast(library().spell, ctypes.c_void_p).value or 0  # type: ignore[arg-type]

    def __call__(self, text: bytes) -> list[int]:
        ids = np.empty(len(text), dtype=np.uint32)
        count = library().spell(self.address, text, len(text), ids.ctypes.data, len(ids))
        found: list[int] = ids[:count].tolist()
        return found
