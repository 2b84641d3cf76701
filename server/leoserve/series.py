"""The series that are counted as requests run, on cells that the processes of one server share (`leoserve.board`).

Each belongs to one thread of each process, the event loop's, and so does a scrape. The library's own take two locks for
each value, a histogram's walk over its bounds, too, which is too much for something that every token does; its counters
also tell when each was first counted, which is as many lines again of every scrape.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from leoserve.board import Board


class Counts(Collector):
    """How often something has happened, by the value of one label. `values`: all that there are."""

    def __init__(self, board: Board, name: str, documentation: str, label: str, values: Iterable[str]) -> None:
        self.name = name
        self.documentation = documentation
        self.label = label
        self._places = {value: place for place, value in enumerate(values)}
        self._counts = board.cells(len(self._places))

    def add(self, value: str) -> None:
        """Count one more."""
        self._counts.own[self._places[value]] += 1

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self.name, self.documentation, labels=[self.label])
        for value, count in zip(self._places, self._counts.totals(), strict=True):
            family.add_metric([value], count)
        yield family


class Histogram(Collector):
    """How observed values are distributed: how many are at most each of `bounds`, which ascend."""

    def __init__(self, board: Board, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.documentation = documentation
        self._bounds = tuple(bounds)
        self._names = [*map(floatToGoString, bounds), "+Inf"]
        self._cells = board.cells(len(self._names) + 1)  # the last is the sum
        self._own = self._cells.own
        self._sum = len(self._names)

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, as if it had been seen `times` times."""
        self._own[bisect_left(self._bounds, value)] += times
        self._own[self._sum] += value * times

    def collect(self) -> Iterator[Metric]:
        *counts, total = self._cells.totals()
        buckets = list(zip(self._names, accumulate(counts), strict=True))
        yield HistogramMetricFamily(self.name, self.documentation, buckets=buckets, sum_value=total)


class Level(Collector):
    """How many there are now, in all processes."""

    def __init__(self, board: Board, name: str, documentation: str) -> None:
        self.name = name
        self.documentation = documentation
        self._cells = board.passing_cells(1)

    @property
    def total(self) -> int:
        return int(self._cells.total())

    def set(self, count: int) -> None:
        """So many there are in this process."""
        self._cells.own[0] = count

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self.name, self.documentation, value=self._cells.total())


class Total(Collector):
    """How often something has happened."""

    def __init__(self, board: Board, name: str, documentation: str) -> None:
        self.name = name
        self.documentation = documentation
        self._cells = board.cells(1)

    def add(self) -> None:
        """Count one more."""
        self._cells.own[0] += 1

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self.name, self.documentation, value=self._cells.total())


class Processes(Collector):
    """What the library's collector tells of one process, of all that share a board: sums, and the earliest start.

    The processor time of those that have ended stays in it.
    """

    def __init__(self, board: Board) -> None:
        self._pids = board.passing_cells(1)
        self._pids.own[0] = os.getpid()
        self._seconds = board.cells(1)
        self._before = self._seconds.own[0]  # of processes that had this row before
        self._collectors: dict[int, ProcessCollector] = {}

    def tick(self) -> None:
        """Now and then: what this process has used until now."""
        self._seconds.own[0] = self._before + time.process_time()

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering reads no files."""
        return ()

    def collect(self) -> Iterator[Metric]:
        self.tick()
        running = [int(row[0]) for row in self._pids.rows if row[0]]
        self._collectors = {pid: self._collectors.get(pid) or collector(pid) for pid in running}
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for one in self._collectors.values():
            for family in one.collect():
                found[family.name, family.documentation] += [sample.value for sample in family.samples]
        for (name, documentation), values in found.items():
            if name == "process_cpu_seconds":
                yield CounterMetricFamily(name, documentation, value=self._seconds.total())
            else:
                value = min(values) if name == "process_start_time_seconds" else sum(values)
                yield GaugeMetricFamily(name, documentation, value=value)


def collector(pid: int) -> ProcessCollector:
    return ProcessCollector(pid=lambda: pid, registry=None)
