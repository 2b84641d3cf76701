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
        self.ends: dict[int, int] = {}  # of each slot's sequence: its first position not yet computed
        self.tokens: dict[int, list[int]] = {}  # of each slot's sequence, as far as it was ever to be computed
        self.failing_token: int | None = None
        self.fail_once_after_writing = False  # as when memory runs out between two layers
        self.computed: list[tuple[int, int, int]] = []  # (slot, start, count) of every row
        self.violations: list[str] = []  # not raised: the loop would take it for a failed step, and try again

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            self.violations.append(what)

    def run(self, step: Step) -> list[RowResult]:
        self.require(all(row.tokens for row in step.rows) and bool(step.rows), "a row computes nothing")
        self.require(step.num_tokens <= self.budget, "the budget is exceeded")
        self.require(len({row.slot for row in step.rows}) == len(step.rows), "two rows of one slot")
        lengths = [len(row.tokens) > 1 for row in step.rows]
        self.require(lengths == sorted(lengths), "decode rows come first")
        if self.failing_token is not None and any(self.failing_token in row.tokens for row in step.rows):
            raise RuntimeError("this token cannot be computed")
        sources = [list(self.cells[source]) for source, _ in step.copies]
        for (_, target), cells in zip(step.copies, sources, strict=True):
            self.cells[target] = cells
        for row in step.rows:
            self._write(row)
        if self.fail_once_after_writing:
            self.fail_once_after_writing = False
            raise RuntimeError("failed after the keys were written")
        for row in step.rows:
            self._attend(row)
            twice = not row.admitted and row.start != self.ends[row.slot]
            self.require(not twice, "a position is computed twice, or left out, without a preemption")
            self.ends[row.slot] = row.start + len(row.tokens)
            self.computed.append((row.slot, row.start, len(row.tokens)))
        return [RowResult(token=self._sample(row) if row.samples else None) for row in step.rows]

    def _write(self, row) -> None:
        if row.admitted:
            self.tables[row.slot] = []
            self.tokens[row.slot] = row.admitted.prompt + row.admitted.generated
            self.require(row.first_new_block == 0, "a new table begins in its middle")
        table, tokens = self.tables[row.slot], self.tokens[row.slot]
        self.require(row.first_new_block <= len(table), "the table has a hole")
        table[row.first_new_block :] = row.new_blocks or table[row.first_new_block :]
        tokens[row.start : row.start + len(row.tokens)] = row.tokens
        cell = digest(tokens[: row.start])
        for position, token in enumerate(row.tokens, row.start):
            cell = extend(cell, token)
            self.cells[table[position // self.block_size]][position % self.block_size] = cell

    def _attend(self, row) -> None:
        """After all rows wrote, as attention reads: every key up to the row's last must be the right one."""
        table, tokens = self.tables[row.slot], self.tokens[row.slot]
        cell = b""
        for position in range(row.start + len(row.tokens)):
            cell = extend(cell, tokens[position])
            self.require(self._cell(table, position) == cell, f"the key at position {position} is wrong")

    def _sample(self, row) -> int:
        last = self._cell(self.tables[row.slot], row.start + len(row.tokens) - 1)
        return (last or b"\0")[0] % self.vocab

    def _cell(self, table: list[int], position: int) -> Cell | None:
        return self.cells[table[position // self.block_size]][position % self.block_size]
