"""leoserve.board: rows that processes share, and what a process without others has instead."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from leoserve.board import LASTING, PASSING, Board, shared_memory


@pytest.fixture
def file() -> Iterator[int]:
    file = shared_memory(3, rest=100)
    yield file
    os.close(file)


def test_each_writes_its_own_row_and_sees_the_sum_of_all(file: int) -> None:
    boards = [Board(file, rows=3, row=row) for row in range(3)]
    cells = [board.cells(2) for board in boards]
    for row, mine in enumerate(cells):
        mine.own[0] += row + 1
        mine.own[1] += 0.5
    assert [(mine.total(), mine.totals()) for mine in cells] == [(6, [6, 1.5])] * 3
    assert cells[2].own[0] == 3


def test_what_one_has_now_is_gone_with_it_and_what_it_has_counted_stays(file: int) -> None:
    first, second = (Board(file, rows=3, row=row) for row in (0, 1))
    (counted, has), (also_counted, also_has) = ((board.cells(1), board.passing_cells(1)) for board in (first, second))
    for cells in (counted, has, also_counted, also_has):
        cells.own[0] = 1
    second.clear(1)
    assert (counted.total(), has.total()) == (2, 1)


def test_an_event_is_news_once_for_all_and_again_after_another(file: int) -> None:
    boards = [Board(file, rows=3, row=row) for row in range(3)]
    assert [board.news("a") for board in boards] == [True, False, False]
    assert [board.news("b") for board in boards] == [True, False, False]
    assert boards[0].news("a")


def test_a_process_by_itself_has_cells_of_its_own_and_all_is_news_to_it() -> None:
    board, other = Board(), Board()
    cells, others = board.cells(2), other.cells(2)
    cells.own[1] += 2
    assert (cells.total(1), cells.totals(), others.totals()) == (2, [0, 2], [0, 0])
    assert board.news("a")
    assert board.news("a")


def test_more_cells_than_a_row_has_are_refused() -> None:
    board = Board()
    board.passing_cells(PASSING)
    with pytest.raises(ValueError, match="not enough"):
        board.cells(LASTING)


def test_what_is_behind_the_rows_is_shared_too(file: int) -> None:
    Board(file, rows=3).rest[:3] = b"leo"
    assert bytes(Board(file, rows=3, row=2).rest[:4]) == b"leo\0"
    assert len(Board(file, rows=3).rest) == 100
