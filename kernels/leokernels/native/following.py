"""Moving the parsers of constrained answers on, with threads that have nothing to do; and spelling text in tokens."""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leokernels.native.loading import library, pool

# The structures of leonative.h, field by field.
_PARSERS = struct.Struct("@2P")
FOLLOW = np.dtype(
    [("parser", np.uintp), ("words", np.uintp), ("bytes", np.int64), ("token", np.uint32), ("state", np.int32)],
    align=True,
)
NONE = np.zeros(0, FOLLOW)
_STOPPED = 2


class Follower:
    """Gives parsers their tokens and makes their masks, while the caller goes on.

    To be used by the thread that calls the library's other functions.
    """

    def __init__(self, commit: int, mask: int) -> None:
        """The addresses of a parser's functions, as LeoParsers has them. Raises RuntimeError where the library is
        missing."""
        self._address = library().follower_new(pool(), _PARSERS.pack(commit, mask))
        self._rows = NONE  # until they are done
        self._delete = weakref.finalize(self, library().follower_delete, self._address)  # waits; so at the process' end

    def begin(self, rows: NDArray[np.void]) -> None:
        """rows [R] FOLLOW, which are the follower's from here on: the addresses of a parser and of its mask, the mask's
        bytes, the token that was chosen, and 0.

        A mask is all 0 of a parser that cannot go on, and stays as it was where nothing can follow the token. Parsers
        and masks must live, and nobody may use them, until `ended`. Waits for what was begun before.
        """
        self.ended(wait=True)
        self._rows = rows
        library().follow(self._address, rows.ctypes.data, len(rows))

    def ended(self, *, wait: bool) -> list[int] | None:
        """The numbers of the rows of the last `begin` whose tokens nothing can follow; told once, then there is none.

        None if not all is done, and it is not to `wait` for that.
        """
        if self._rows is NONE or not self._delete.alive:
            return []
        count = library().followed(self._address, wait)
        if count < 0:
            return None
        rows, self._rows = self._rows, NONE
        ended: list[int] = np.flatnonzero(rows["state"] & _STOPPED).tolist() if count else []
        return ended


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
