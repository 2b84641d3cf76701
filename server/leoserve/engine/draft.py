"""A step while it is planned: its rows, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from leoserve.engine.sequence import Sequence
from leoserve.model.step import Admitted, Row

NO_BLOCKS: tuple[int, ...] = ()


@dataclass(slots=True)
class Draft:
    """A step that is being planned: row i is for sequence i. What it computes is not yet counted of those `added`."""

    rows: list[Row] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    added: list[tuple[Row, Sequence]] = field(default_factory=list)

    def add(self, row: Row, sequence: Sequence) -> None:
        """One row more."""
        self.rows.append(row)
        self.sequences.append(sequence)
        self.added.append((row, sequence))


def new_row(sequence: Sequence, tokens: int, *, deterministic: bool, admitted: bool = False) -> Row:
    """The sequence's next `tokens`. Counts the blocks that it brings as known to the runner."""
    start, end = sequence.num_computed, sequence.num_computed + tokens
    known = sequence.num_uploaded
    row = Row(
        sequence.slot,
        start,
        None if sequence.has_sampled else sequence.tokens[start:end],
        known,
        sequence.blocks[known:] if len(sequence.blocks) > known else NO_BLOCKS,
        end == sequence.length and sequence.limit > sequence.num_prompt,
        start >= sequence.num_prompt if deterministic else tokens == 1,
    )
    if start < sequence.num_prompt:
        _add_prompt(row, sequence, end)
    if admitted:
        request, generated = sequence.request, sequence.tokens[sequence.num_prompt :]
        row.admitted = Admitted(request.params, sequence.index, request.prompt, generated, sequence.grammar)
    sequence.num_uploaded = len(sequence.blocks)
    return row


def _add_prompt(row: Row, sequence: Sequence, end: int) -> None:
    """To a row with prompt tokens: whose log-probabilities are wanted."""
    params = sequence.request.params
    if params.prompt_logprobs is not None and sequence.index == 0 and sequence.num_generated == 0:
        row.targets = sequence.request.prompt[row.start + 1 : end + 1]
