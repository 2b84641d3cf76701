"""A runner without a model: it checks that every key a row would attend to is the right one.

Each cache cell holds a digest of all tokens up to its position, which is what a real key depends on. A row fails the
test when a cell of its past holds anything else: a block shared wrongly, freed too early, not copied, or never
computed.
The next token is a function of the prefix alone, so any history of a sequence must give the same answer.
"""

from __future__ import annotations

from hashlib import blake2b

from leoserve.model.step import RowResult, Step

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
        self.failing_token: int | None = None
        self.computed: list[tuple[int, int, int]] = []  # (slot, start, count) of every row
        self.steps = 0

    def run(self, step: Step) -> list[RowResult]:
        assert step.rows
        assert all(row.tokens for row in step.rows), "a row computes nothing"
        assert step.num_tokens <= self.budget
        slots = [row.slot for row in step.rows]
        assert len(set(slots)) == len(slots), "two rows of one slot"
        lengths = [len(row.tokens) > 1 for row in step.rows]
        assert lengths == sorted(lengths), "decode rows come first"
        if self.failing_token is not None and any(self.failing_token in row.tokens for row in step.rows):
            raise RuntimeError("this token cannot be computed")
        sources = [list(self.cells[source]) for source, _ in step.copies]
        for (_, target), cells in zip(step.copies, sources, strict=True):
            self.cells[target] = cells
        for row in step.rows:
            self._write(row)
        self.steps += 1
        return [RowResult(token=self._sample(row) if row.samples else None) for row in step.rows]

    def _write(self, row) -> None:
        table = [] if row.admitted else self.tables[row.slot]
        self.tables[row.slot] = table = table + row.new_blocks
        cell: Cell | None = b"" if row.start == 0 else self._cell(table, row.start - 1)
        for position, token in enumerate(row.tokens, row.start):
            assert cell is not None, "a key of the past was never computed"
            cell = extend(cell, token)
            self.cells[table[position // self.block_size]][position % self.block_size] = cell
        self.computed.append((row.slot, row.start, len(row.tokens)))

    def _sample(self, row) -> int:
        """After all rows wrote: a block written by two rows would show here."""
        table = self.tables[row.slot]
        last = self._cell(table, row.start + len(row.tokens) - 1)
        assert last is not None
        return last[0] % self.vocab

    def _cell(self, table: list[int], position: int) -> Cell | None:
        return self.cells[table[position // self.block_size]][position % self.block_size]
