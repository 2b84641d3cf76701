"""From a step's rows to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from leokernels import AttentionMetadata
from leoserve.model.step import Row

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class BlockTables:
    """The block table of every slot, kept between steps: a step brings only the blocks that are new."""

    def __init__(self, *, slots: int, blocks_per_sequence: int, block_size: int) -> None:
        self.block_size = block_size
        self._tables: Int32 = np.zeros((slots, blocks_per_sequence), dtype=np.int32)

    def update(self, row: Row) -> None:
        """Put a row's new blocks into its slot's table. Doing so again changes nothing."""
        self._tables[row.slot, row.first_new_block : row.first_new_block + len(row.new_blocks)] = row.new_blocks

    def of(self, slots: Int64, longest: int) -> Int32:
        """[len(slots), blocks for `longest` positions]: the tables of these slots."""
        return self._tables[slots, : -(-longest // self.block_size)]


@dataclass(slots=True)
class Batch:
    """The inputs of one forward pass over T tokens of R rows."""

    tokens: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    slots: list[int]  # of the rows
    where: Int64  # the same
    metadata: AttentionMetadata


def build_batch(
    rows: Sequence[Row],
    known: Sequence[tuple[int, list[int]]],
    tables: BlockTables,
    last_token: Int64,
    device: torch.device,
) -> Batch:
    """Concatenate the rows, decode rows first, and say where each token's keys and values go.

    `known` are the rows that bring their tokens, number and tokens; the others have one each, which is in `last_token`
    [slots], what was sampled last in each slot.
    """
    slots = [row.slot for row in rows]
    where = np.array(slots, dtype=np.int64)
    starts = np.array([row.start for row in rows], dtype=np.int64)
    one_each = _numbers(len(rows) + 1)
    if known:
        counts: Int64 = np.ones(len(rows), dtype=np.int64)
        for number, row_tokens in known:
            counts[number] = len(row_tokens)
        query_start: Int64 = np.concatenate([one_each[:1], np.cumsum(counts)])
        row_of_token = np.repeat(one_each[:-1], counts)
        positions = np.arange(query_start[-1]) - (query_start[:-1] - starts)[row_of_token]
        tokens = last_token[where[row_of_token]]
        for number, row_tokens in known:
            tokens[query_start[number] : query_start[number + 1]] = row_tokens
        contexts, query_lens = starts + counts, counts.tolist()
    else:  # as in most steps
        query_start, row_of_token, positions, tokens = one_each, one_each[:-1], starts, last_token[where]
        contexts, query_lens = starts + 1, [1] * len(rows)
    context_lens = contexts.tolist()
    longest = max(context_lens)
    table = tables.of(where, longest)
    block, offset = np.divmod(positions, tables.block_size)
    slot_mapping = table[row_of_token, block] * np.int64(tables.block_size) + offset
    metadata = AttentionMetadata(
        num_decode=len(rows) - sum(not rows[number].decodes for number, _ in known),
        query_start=torch.from_numpy(query_start.astype(np.int32)).to(device),
        context_len=torch.from_numpy(contexts.astype(np.int32)).to(device),
        block_table=torch.from_numpy(table).to(device),
        slot_mapping=torch.from_numpy(slot_mapping).to(device),
        query_lens=query_lens,
        context_lens=context_lens,
        max_query=max(query_lens),
        max_context=longest,
    )
    return Batch(torch.from_numpy(tokens).to(device), torch.from_numpy(positions).to(device), slots, where, metadata)


@cache
def _numbers(count: int) -> Int64:
    """[count]: 0, 1, ...; not to be written to."""
    return np.arange(count)
