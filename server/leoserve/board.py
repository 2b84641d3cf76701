"""Numbers that the processes of one server share: each writes a row of its own, and all read every row.

A server of one process has a board of one row, which is plain memory of its own. With several (`leoserve.workers`) the
rows lie in memory that all of them map. A cell is a float64 that is written and read as a whole, and each has one
writer, so that nobody waits for anybody. Counts to 2**53 are exact.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import cast

CELL_BYTES = 8
LASTING = 768  # cells of a row that outlive the process which writes it
PASSING = 256  # cells that are 0 again when it has ended
COLUMNS = LASTING + PASSING

Row = MutableSequence[float]


class Cells:
    """A few cells: those of this process, and the same of every row."""

    __slots__ = ("own", "rows")

    def __init__(self, own: Row, rows: Sequence[Row]) -> None:
        self.own = own
        self.rows = rows

    def total(self, place: int = 0) -> float:
        """The sum of one cell over all rows."""
        return sum(row[place] for row in self.rows)

    def totals(self) -> list[float]:
        """The sum of each cell over all rows."""
        return [*self.own] if len(self.rows) == 1 else [sum(column) for column in zip(*self.rows, strict=True)]


class Board:
    """Gives out cells. Every process has to ask for the same ones in the same order."""

    def __init__(self, file: int | None = None, *, rows: int = 1, row: int = 0) -> None:
        """`file`: a descriptor of `shared_memory`; None for a process that shares with none. `row`: of this process."""
        self.row = row
        self.file = file
        self.rows: list[Row] = [[0.0] * COLUMNS]
        self.rest = memoryview(b"")  # what the shared memory has behind the rows
        if file is not None:
            memory = memoryview(mmap.mmap(file, 0))
            self.rest = memory[rows * COLUMNS * CELL_BYTES :]
            self.rows = [floats(memory, index * COLUMNS, COLUMNS) for index in range(rows)]
        self._lasting = iter(range(LASTING))
        self._passing = iter(range(LASTING, COLUMNS))
        self._said = self.cells(1)

    def cells(self, count: int) -> Cells:
        """The next `count` cells, for what is counted as long as the server lives."""
        return self._take(self._lasting, count)

    def passing_cells(self, count: int) -> Cells:
        """The next `count` cells, for what a process has now, and has no longer when it has ended."""
        return self._take(self._passing, count)

    def clear(self, row: int) -> None:
        """The process of this row has ended."""
        for place in range(LASTING, COLUMNS):
            self.rows[row][place] = 0.0

    def news(self, event: str) -> bool:
        """Whether no process has told of this event yet, to which others come, too. It counts as told then."""
        if self.file is None:
            return True
        mark = float(zlib.crc32(event.encode()))
        with self.locked():
            first = self._said.rows[0][0] != mark
            self._said.rows[0][0] = mark
        return first

    @contextmanager
    def locked(self) -> Iterator[None]:
        """In here is one process at a time. The system opens it again when that process ends."""
        if self.file is None:
            yield
            return
        fcntl.lockf(self.file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.file, fcntl.LOCK_UN)

    def _take(self, places: Iterator[int], count: int) -> Cells:
        taken = list(islice(places, count))
        if len(taken) < count:
            raise ValueError(f"a board's row has {LASTING} lasting and {PASSING} passing cells, and that is not enough")
        if self.file is None:
            own: Row = [0.0] * count
            return Cells(own, [own])
        rows = [row[taken[0] : taken[0] + count] for row in self.rows]
        return Cells(rows[self.row], rows)


def shared_memory(rows: int, rest: int = 0) -> int:
    """A descriptor of memory for a board, and `rest` bytes behind it, all zero. Children can inherit it. What nobody
    writes takes no memory."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("leoserve")
    else:
        with tempfile.TemporaryFile() as made:
            file = os.dup(made.fileno())
    os.ftruncate(file, rows * COLUMNS * CELL_BYTES + rest)
    return file


def floats(memory: memoryview, first: int, count: int) -> Row:
    """`count` float64 cells of `memory`, which are its own, from number `first` on."""
    return cast(Row, memory[first * CELL_BYTES : (first + count) * CELL_BYTES].cast("d"))
