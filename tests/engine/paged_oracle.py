"""A runner without a model: it checks that every key a row would attend to is the right one.

Each cache cell holds a digest of all tokens up to its position, which is what a real key depends on. A row fails the
test when a cell of its past holds anything else: a block shared wrongly, freed too early, not copied, or never
computed.
The next token is a function of the prefix alone, so any history of a sequence must give the same answer.

`LateOracle` is the same as a device is: it computes a step as late as it can, after the host has planned the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from hashlib import blake2b

from leoserve.model.step import Computed, Result, Row, RowResult, Step

Cell = bytes


def extend(parent: Cell, token: int) -> Cell:
    """The digest of a prefix and one more token."""
    return blake2b(parent + token.to_bytes(4, "little"), digest_size=8).digest()


def digest(tokens: list[int]) -> Cell:
    """The digest of a whole prefix."""
    cell = b""
    for token in tokens:
        cell = extend(cell, token)
    return cell


def next_token(prefix: list[int], vocab: int = 50) -> int:
    """What the oracle answers after `prefix`."""
    return digest(prefix)[0] % vocab


class PagedOracle:
    """Runs steps against cells; `failing` prompts raise, as a broken request would."""

    def __init__(self, *, num_blocks: int, block_size: int, budget: int, vocab: int = 50) -> None:
        self.cells: list[list[Cell | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.block_size = block_size
        self.budget = budget
        self.vocab = vocab
        self.tables: dict[int, list[int]] = {}
        self.ends: dict[int, int] = {}  # of each slot's sequence: its first position not yet computed
        self.tokens: dict[int, list[int]] = {}  # of each slot's sequence, as far as it was ever to be computed
        self.last: dict[int, int] = {}  # what was sampled last in each slot
        self.failing_token: int | None = None
        self.fail_once_after_writing = False  # as when memory runs out between two layers
        self.computed: list[tuple[int, int, int]] = []  # (slot, start, count) of every row
        self.violations: list[str] = []  # not raised: the loop would take it for a failed step, and try again

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            self.violations.append(what)

    def launch(self, step: Step):
        self.check(step)
        return Computed(self.run(step, self._fails_now()))

    def _fails_now(self) -> bool:
        fails, self.fail_once_after_writing = self.fail_once_after_writing, False
        return fails

    def check(self, step: Step) -> None:
        """What must hold of a step when it is launched."""
        self.require(all(row.count for row in step.rows) and bool(step.rows), "a row computes nothing")
        self.require(step.num_tokens <= self.budget, "the budget is exceeded")
        self.require(len({row.slot for row in step.rows}) == len(step.rows), "two rows of one slot")
        prefills = [not row.decodes for row in step.rows]
        self.require(prefills == sorted(prefills), "decode rows come first")
        self.require(all(row.count == 1 for row in step.rows if row.decodes), "a row that decodes has several tokens")
        if self.failing_token is not None and any(self.failing_token in (row.tokens or ()) for row in step.rows):
            raise RuntimeError("this token cannot be computed")

    def run(self, step: Step, fails: bool = False) -> list[Result]:
        """Compute a step, or fail halfway."""
        sources = [list(self.cells[source]) for source, _ in step.copies]
        for (_, target), cells in zip(step.copies, sources, strict=True):
            self.cells[target] = cells
        for row in step.rows:
            self._write(row)
        if fails:
            raise RuntimeError("failed after the keys were written")
        for row in step.rows:
            self._attend(row)
            twice = not row.admitted and row.start != self.ends[row.slot]
            self.require(not twice, "a position is computed twice, or left out, without a preemption")
            self.ends[row.slot] = row.start + row.count
            self.computed.append((row.slot, row.start, row.count))
        return [self._result(row) for row in step.rows]

    def _result(self, row: Row) -> Result:
        """A token alone or as a record: both say the same."""
        if not row.samples:
            return RowResult()
        token = self._sample(row)
        return RowResult(token) if row.start % 3 == 0 else token

    def _write(self, row: Row) -> None:
        values = [self.last[row.slot]] if row.tokens is None else row.tokens
        if row.admitted:
            self.tables[row.slot] = []
            self.tokens[row.slot] = row.admitted.prompt + row.admitted.generated
            self.require(row.first_new_block == 0, "a new table begins in its middle")
        table, tokens = self.tables[row.slot], self.tokens[row.slot]
        self.require(row.first_new_block <= len(table), "the table has a hole")
        table[row.first_new_block :] = row.new_blocks or table[row.first_new_block :]
        tokens[row.start : row.start + row.count] = values
        cell = digest(tokens[: row.start])
        for position, token in enumerate(values, row.start):
            cell = extend(cell, token)
            self.cells[table[position // self.block_size]][position % self.block_size] = cell

    def _attend(self, row: Row) -> None:
        """After all rows wrote, as attention reads: every key up to the row's last must be the right one."""
        table, tokens = self.tables[row.slot], self.tokens[row.slot]
        cell = b""
        for position in range(row.start + row.count):
            cell = extend(cell, tokens[position])
            self.require(self._cell(table, position) == cell, f"the key at position {position} is wrong")

    def _sample(self, row: Row) -> int:
        last = self._cell(self.tables[row.slot], row.start + row.count - 1)
        self.last[row.slot] = (last or b"\0")[0] % self.vocab
        return self.last[row.slot]

    def _cell(self, table: list[int], position: int) -> Cell | None:
        return self.cells[table[position // self.block_size]][position % self.block_size]


class LateOracle(PagedOracle):
    """A device with a queue: steps are computed in order, each as late as when its results are asked for.

    What a queued step reads or writes must not be given to another sequence before its results were taken: neither its
    slot, nor its blocks for writing.
    """

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.queue: deque[LateStep] = deque()
        self.untaken: list[LateStep] = []  # launched, and the host has not seen the results
        self.host_tables: dict[int, list[int]] = {}  # the block tables as the launches so far make them

    def launch(self, step: Step):
        self.check(step)
        late = LateStep(self, step, [self._blocks(row) for row in step.rows])
        for row, (_, writes) in zip(step.rows, late.blocks, strict=True):
            for earlier in self.untaken:
                for other, (reads, _) in zip(earlier.step.rows, earlier.blocks, strict=True):
                    if other.slot == row.slot:
                        self.require(row.admitted is None, "a slot has a new owner while a step in flight uses it")
                    else:
                        self.require(not writes & reads, "a block has a new owner while a step in flight uses it")
        for _, target in step.copies:
            used = any(target in reads for earlier in self.untaken for reads, _ in earlier.blocks)
            self.require(not used, "a block is copied over while a step in flight uses it")
        if self._fails_now():
            self.catch_up()
            self.run(step, fails=True)
        self.queue.append(late)
        self.untaken.append(late)
        return late

    def _blocks(self, row: Row) -> tuple[set[int], set[int]]:
        """All blocks of the row, and those that it writes."""
        table = [] if row.admitted else self.host_tables[row.slot]
        table[row.first_new_block :] = row.new_blocks or table[row.first_new_block :]
        self.host_tables[row.slot] = table
        written = range(row.start // self.block_size, (row.start + row.count - 1) // self.block_size + 1)
        return set(table), {table[place] for place in written}

    def catch_up(self, steps: int | None = None) -> None:
        """Compute what is queued, or the first few."""
        while self.queue and steps != 0:
            late = self.queue.popleft()
            late.computed = self.run(late.step)
            steps = None if steps is None else steps - 1


class LateStep:
    """A step in the queue of a LateOracle."""

    def __init__(self, oracle: LateOracle, step: Step, blocks: list[tuple[set[int], set[int]]]) -> None:
        self.oracle = oracle
        self.step = step
        self.blocks = blocks
        self.computed: list[Result] | None = None

    def ended(self, *, wait: bool) -> Sequence[int]:
        return ()

    def results(self) -> list[Result]:
        while self.computed is None:
            self.oracle.catch_up(1)
        self.oracle.require(self.oracle.untaken[0] is self, "results are taken out of order")
        self.oracle.untaken.pop(0)
        return self.computed
