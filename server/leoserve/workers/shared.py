"""What the supervisor and its workers have in common on the board."""

from __future__ import annotations

from leoserve.board import Board
from leoserve.engine.client import EngineClient
from leoserve.engine.request import EngineStats
from leoserve.metrics import Metrics

SUPERVISOR = 0  # its row of the board
STATS = EngineStats.__struct_fields__
IN_FLIGHT, RESTARTS, PID, UNANSWERED_SINCE, HOPELESS = range(len(STATS), len(STATS) + 5)  # places of cells


class Shared:
    """Takes the cells that supervisor and workers share, in the order that all of them have to keep to.

    `pulse`: the time of the last sign of life of each row's process; 0 before the first.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self.metrics = Metrics(board)
        if self.metrics.several is None:
            raise ValueError("a board of one process is shared with nobody")
        self.several = self.metrics.several
        self.view = View(board)
        self.pulse = board.passing_cells(1)


class View:
    """The engine's last snapshot, and what the supervisor's client of it knows: it writes that, the workers read it."""

    def __init__(self, board: Board) -> None:
        self._cells = board.cells(HOPELESS + 1).rows[SUPERVISOR]

    def show(self, engine: EngineClient, *, hopeless: bool) -> None:
        """`hopeless`: whether something else than the engine is."""
        cells = self._cells
        for place, name in enumerate(STATS):
            cells[place] = getattr(engine.stats, name)
        cells[IN_FLIGHT] = engine.in_flight
        cells[RESTARTS] = engine.restarts
        cells[PID] = engine.pid or 0
        cells[UNANSWERED_SINCE] = engine.unanswered_since or 0.0
        cells[HOPELESS] = hopeless or engine.hopeless

    @property
    def stats(self) -> EngineStats:
        read = dict(zip(STATS, self._cells, strict=False))
        seconds = read.pop("step_seconds")
        return EngineStats(step_seconds=seconds, **{name: int(count) for name, count in read.items()})

    @property
    def in_flight(self) -> int:
        return int(self._cells[IN_FLIGHT])

    @property
    def restarts(self) -> int:
        return int(self._cells[RESTARTS])

    @property
    def pid(self) -> int | None:
        return int(self._cells[PID]) or None

    @property
    def unanswered_since(self) -> float | None:
        return self._cells[UNANSWERED_SINCE] or None

    @property
    def hopeless(self) -> bool:
        return bool(self._cells[HOPELESS])
