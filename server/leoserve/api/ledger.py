"""Where it stands what clients have spent: with the process that serves them, or, with several, where all see it.

In shared memory an entry is 32 bytes that name the client and its limits, and for each kind of limit the cells of a
`rates.Bucket`. Entries are only added: a client that has spent nothing has none.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from leoserve.board import CELL_BYTES, Board, Row, floats

logger = logging.getLogger(__name__)

KINDS = 2  # of limits
NAME_BYTES = 32
HEAD_CELLS = 1  # the number of entries
MOST_ENTRIES = 1 << 20


class Ledger:
    """The accounts of all clients, in what `board` shares behind its rows, or in this process's own memory."""

    def __init__(self, board: Board, most: int = MOST_ENTRIES) -> None:
        self._board = board
        self._most = most
        self._columns = 1 + len(board.rows)  # of a bucket
        self._entry = NAME_BYTES + KINDS * self._columns * CELL_BYTES
        self._found: dict[bytes, int] = {}  # entries by name, as far as they have been looked through
        self._full = False

    def account(self, name: bytes) -> list[Row]:
        """The cells of each kind of bucket of the client with this name, which is 32 bytes."""
        if self._board.file is None:
            return self._own()
        with self.locked():
            self._catch_up()
            number = self._found.get(name)
            if number is None and len(self._found) < self._most:
                number = self._found[name] = len(self._found)
                start = self._start(number)
                self._board.rest[start : start + NAME_BYTES] = name
                self._head()[0] = number + 1
        if number is None:
            if not self._full:
                logger.warning("limits of more than %d clients hold for each API process by itself", self._most)
            self._full = True
            return self._own()
        return self._cells(number)

    def forgive(self, row: int) -> None:
        """The process with this row of the board has ended: nothing of what it has set aside will be used."""
        if self._board.file is None:
            return
        with self.locked():
            for number in range(int(self._head()[0])):
                for cells in self._cells(number):
                    cells[1 + row] = 0.0

    def locked(self) -> AbstractContextManager[None]:
        """To look and then write: in here is one process at a time."""
        return self._board.locked()

    def place(self) -> int:
        """Which of a bucket's cells holds what this process has set aside."""
        return 1 + self._board.row

    def _own(self) -> list[Row]:
        return [[0.0] * self._columns for _ in range(KINDS)]

    def _catch_up(self) -> None:
        """Take note of what others have added."""
        for number in range(len(self._found), int(self._head()[0])):
            start = self._start(number)
            self._found[bytes(self._board.rest[start : start + NAME_BYTES])] = number

    def _head(self) -> Row:
        return floats(self._board.rest, 0, HEAD_CELLS)

    def _start(self, number: int) -> int:
        return HEAD_CELLS * CELL_BYTES + number * self._entry

    def _cells(self, number: int) -> list[Row]:
        first = (self._start(number) + NAME_BYTES) // CELL_BYTES
        return [floats(self._board.rest, first + kind * self._columns, self._columns) for kind in range(KINDS)]


def ledger_bytes(rows: int, most: int = MOST_ENTRIES) -> int:
    """What a ledger takes of shared memory at most."""
    return HEAD_CELLS * CELL_BYTES + most * (NAME_BYTES + KINDS * (1 + rows) * CELL_BYTES)
