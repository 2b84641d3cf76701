"""The spread within runs, where each side has but one: a block bootstrap (Künsch, The Annals of Statistics 17, 1989).

The measured time is cut into blocks, whole blocks are drawn with replacement, and the quantity is computed anew from
what was drawn. Blocks are drawn because neighbouring requests share a queue and tell less than independent ones. What
changes only from one run to the next, no block can show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leobench.compare.quantities import ANSWERS, BOUNDED, FAILED, GOOD, OUTPUT, QUANTITIES, Quantity
from leobench.compare.student import student, welch
from leobench.records import RequestRecord, Run
from leobench.summary import e2e, good, measured

MOST_BLOCKS, FEWEST_BLOCKS = 20, 8
ANSWERS_A_BLOCK = 5  # in time: a block is at least as long as so many median answers, as far as there is time
NEARLY_ALL = 0.95  # of the requests: so many ended within the measured time, where none was left to itself
DRAWS = 1000
RATES = (OUTPUT, ANSWERS)
GRID = 2000  # points between which a drawn percentile is interpolated

Values = npt.NDArray[np.float64]


class Blocks:
    """Two runs cut into equally many blocks of time.

    Two open loops with the same load and workload sent the same requests at the same times: their blocks belong
    together and are drawn in pairs, by which what both have in common cancels out.

    A request belongs to the block of its end; to that of its arrival where runs are paired, and for the throughput of
    an open loop that was answered to its end: that differs from run to run as the arrivals do, and a full server, whose
    answers end at an even pace, would hide how much.
    """

    def __init__(self, first: Run, other: Run) -> None:
        self.runs = (first, other)
        is_open = all("concurrency" not in run.load for run in self.runs)
        self.paired = is_open and first.load == other.load and first.workload == other.workload
        self.records = [measured(run) for run in self.runs]
        answered = all(
            len(records) >= NEARLY_ALL * sum(not record.warmup for record in run.requests)
            for run, records in zip(self.runs, self.records, strict=True)
        )
        self.by_arrival = QUANTITIES if self.paired else RATES if is_open and answered else ()
        self.count = min(_blocks(run, records) for run, records in zip(self.runs, self.records, strict=True))
        random = np.random.default_rng(0)  # the same files always compare the same
        even = np.full(self.count, 1 / self.count)
        draws = [random.multinomial(self.count, even, DRAWS).astype(np.float64) for _ in self.runs]
        self.draws = [draws[0], draws[0]] if self.paired else draws
        self._known: dict[tuple[str, int], Drawn] = {}

    def _places(self, quantity: Quantity, side: int) -> npt.NDArray[np.int64]:
        """The block of each of a side's requests."""
        run, records = self.runs[side], self.records[side]
        times = [record.intended if quantity in self.by_arrival else record.ended for record in records]
        begin, end = run.measured_from, run.measured_until
        if self.paired:
            begin, end = (
                pick(getattr(each, name) for each in self.runs)
                for pick, name in ((max, "measured_from"), (min, "measured_until"))
            )
        places = np.floor((np.asarray(times) - begin) / (end - begin) * self.count)
        return np.clip(places, 0, self.count - 1).astype(np.int64)

    def margin(self, quantity: Quantity) -> tuple[float, float]:
        """Half of the interval of the difference, of logarithms where it is a ratio, and the independent blocks."""
        sides = [self._drawn(quantity, side) for side in (0, 1)]
        drawn = [np.log(np.maximum(side.values, 1e-12)) if quantity.as_ratio else side.values for side in sides]
        told = [side.told for side in sides]
        alone = self._independent(quantity)
        ends = self._ends() if quantity in RATES else [0.0, 0.0]
        if self.paired:
            variance = float(np.var(drawn[1] - drawn[0])) * self.count / (alone[0] - 1) + ends[0]
            return student(min(*told, alone[0]) - 1) * math.sqrt(variance), alone[0]
        variances = [
            float(np.var(values)) * self.count / (blocks - 1) + end
            for values, blocks, end in zip(drawn, alone, ends, strict=True)
        ]
        return welch(variances, [min(each) - 1 for each in zip(told, alone, strict=True)]), min(alone)

    def _independent(self, quantity: Quantity) -> list[float]:
        """How many independent blocks tell of a quantity: of each side, or of the difference where runs are paired.

        Goodput has no more of them than the latencies that its bounds are of: whether a request is good says less than
        how late it was, and with every request of a run on one side of the bound nothing of how near it came.
        """
        found = []
        for each in (quantity, *self._behind(quantity)):
            blocks = [self._drawn(each, side).blocks for side in (0, 1)]
            series = [blocks[1] - blocks[0]] if self.paired else blocks
            found.append([independent(part) for part in series])
        return [min(each) for each in zip(*found, strict=True)]

    def _ends(self) -> list[float]:
        """Variances that a rate has because the measured time ends with an answer, which comes early or late as answers
        do: of each side, or of the difference where runs are paired, of logarithms.
        """
        ends = [
            {record.index: took for record in records if (took := e2e(record)) is not None} for records in self.records
        ]
        length = [run.measured_until - run.measured_from for run in self.runs]
        if self.paired:
            both = ends[0].keys() & ends[1].keys()
            return [float(np.var([ends[1][index] - ends[0][index] for index in both] or [0.0])) / min(length) ** 2]
        return [float(np.var(list(took.values()) or [0.0])) / each**2 for took, each in zip(ends, length, strict=True)]

    def _behind(self, quantity: Quantity) -> list[Quantity]:
        """Quantities of whose blocks there are not fewer than of this one's."""
        if quantity in RATES and self.paired:  # the same was sent: only what answers took can differ
            return [BOUNDED["e2e"]]
        if quantity is not GOOD:
            return []
        bounded = {name for run in self.runs for name in BOUNDED if run.slo and getattr(run.slo, name) is not None}
        values = [BOUNDED[name] for name in sorted(bounded)]
        return [each for each in values if all(any(_values(each, records)) for records in self.records)]

    def _drawn(self, quantity: Quantity, side: int) -> Drawn:
        """Of one side; kept, since more than one margin may ask for it."""
        key = quantity.name, side
        if key not in self._known:
            self._known[key] = self._draw(quantity, side)
        return self._known[key]

    def _draw(self, quantity: Quantity, side: int) -> Drawn:
        records, places, draws = self.records[side], self._places(quantity, side), self.draws[side]
        if quantity.values is not None:
            return _percentiles(quantity, records, places, draws)
        sums = np.bincount(places, _weights(quantity, records, self.runs[side]), self.count)
        if quantity.as_ratio:
            return Drawn(draws @ sums, sums.astype(np.float64), self.count)
        sizes = np.bincount(places, minlength=self.count)
        return Drawn(draws @ sums / np.maximum(draws @ sizes, 1), sums / np.maximum(sizes, 1), self.count)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A quantity in every draw, something like it in every block, and how many blocks `told` of it at all."""

    values: Values
    blocks: Values
    told: float


def independent(blocks: Values) -> float:
    """How many independent blocks tell as much as these: n (1 - r) / (1 + r) with r the correlation of neighbours.

    A queue that builds up over the whole run makes of many blocks hardly more than one observation. In few blocks their
    correlation looks smaller than it is, by (1 + 4 r) / n (Marriott and Pope, Biometrika 41, 1954): undone here.
    """
    centered = blocks - blocks.mean()
    total = float(centered @ centered)
    if total == 0:
        return float(blocks.size)
    correlation = float(centered[1:] @ centered[:-1]) / total
    correlation = (blocks.size * correlation + 1) / (blocks.size - 4)  # there are never fewer than FEWEST_BLOCKS
    correlation = min(max(0.0, correlation), 1.0)
    return max(2.0, blocks.size * (1 - correlation) / (1 + correlation))


def _blocks(run: Run, records: Sequence[RequestRecord]) -> int:
    times = [value for record in records if (value := e2e(record)) is not None]
    if not times:
        return FEWEST_BLOCKS
    longest = (run.measured_until - run.measured_from) / (ANSWERS_A_BLOCK * max(1e-9, float(np.median(times))))
    return int(min(MOST_BLOCKS, max(FEWEST_BLOCKS, longest)))


def _weights(quantity: Quantity, records: Sequence[RequestRecord], run: Run) -> Values:
    """What each request adds to a rate or a share."""
    if quantity is OUTPUT:
        found = [float(record.output_tokens or 0) if record.error is None else 0.0 for record in records]
    elif quantity is GOOD and run.slo is not None:
        slo = run.slo
        found = [float(good(record, slo)) for record in records]
    else:
        found = [float((record.error is None) == (quantity is not FAILED)) for record in records]
    return np.asarray(found, dtype=np.float64)


def _values(quantity: Quantity, records: Sequence[RequestRecord]) -> list[Sequence[float]]:
    """Of each request; of one that failed nothing. Raises ValueError for what only a whole run has."""
    if quantity.values is None:
        raise ValueError(f"{quantity.name} has no values a request of its own")
    return [quantity.values(record) if record.error is None else () for record in records]


def _percentiles(
    quantity: Quantity, records: Sequence[RequestRecord], places: npt.NDArray[np.int64], draws: Values
) -> Drawn:
    """The percentile of each draw, from how many values of each block lie below each point of a grid.

    Of each block there is the share of values above the median. As many blocks tell of the percentile as (Σ n)² / Σ n²
    of the numbers n above it: a tail that one burst made is one observation, however many requests were in the burst.
    """
    count = draws.shape[1]
    lists = _values(quantity, records)
    values = np.asarray([value for part in lists for value in part], dtype=np.float64)
    blocks = np.repeat(places, [len(part) for part in lists])
    grid = np.unique(np.quantile(values, np.linspace(0, 1, GRID)) if values.size > GRID else values)
    cells = blocks * grid.size + np.searchsorted(grid, values)
    counts = np.bincount(cells, minlength=count * grid.size).reshape(count, grid.size)
    slow, above = (
        np.bincount(blocks[values >= np.quantile(values, level)], minlength=count) for level in (0.5, quantity.level)
    )
    shares = slow / np.maximum(counts.sum(axis=1), 1)
    told = float(above.sum() ** 2 / (above**2).sum())
    return Drawn(_read(grid, draws @ counts.cumsum(axis=1), quantity.level), shares, max(2.0, told))


def _read(grid: Values, below: Values, level: float) -> Values:
    """Where each row of cumulative counts reaches `level`, between the points of the grid."""
    wanted = below[:, -1] * level
    after = np.minimum((below < wanted[:, None]).sum(axis=1), grid.size - 1)
    before = np.maximum(after - 1, 0)
    rows = np.arange(len(below))
    low, high = below[rows, before], below[rows, after]
    part = np.where(high > low, (wanted - low) / np.where(high > low, high - low, 1), 1.0)
    found: Values = grid[before] + np.clip(part, 0, 1) * (grid[after] - grid[before])
    return found
