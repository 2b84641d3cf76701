"""Pages for tests: block tables, metadata of a step, and the shared table of attention cases."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leokernels import AttentionMetadata, KVCache, attention, new_cache, write_kv

CPU = torch.device("cpu")


def block_tables(contexts: Sequence[int], block_size: int, *, seed: int | None) -> tuple[list[list[int]], int]:
    """A table for each sequence, of shuffled blocks (seed None: consecutive ones), and the number of blocks needed."""
    counts = [-(-context // block_size) for context in contexts]
    blocks = list(range(sum(counts) + 3))  # some stay unused
    if seed is not None:
        random.Random(seed).shuffle(blocks)
    taken = iter(blocks)
    return [[next(taken) for _ in range(count)] for count in counts], len(blocks)


def step_metadata(
    rows: Sequence[tuple[int, int]], tables: Sequence[Sequence[int]], block_size: int
) -> AttentionMetadata:
    """Metadata of a step whose rows compute `count` tokens from position `start`, as (start, count)."""
    query_lens = [count for _, count in rows]
    context_lens = [start + count for start, count in rows]
    width = max(len(table) for table in tables)
    padded = [[*table, *[2**31 - 1] * (width - len(table))] for table in tables]  # what is past the end is never read
    slots = [
        table[position // block_size] * block_size + position % block_size
        for (start, count), table in zip(rows, tables, strict=True)
        for position in range(start, start + count)
    ]
    num_decode = next((number for number, count in enumerate(query_lens) if count != 1), len(rows))
    query_start = torch.tensor([0, *query_lens]).cumsum(0)
    return AttentionMetadata(
        num_decode=num_decode,
        query_start=query_start.int(),
        context_len=torch.tensor(context_lens, dtype=torch.int32),
        block_table=torch.tensor(padded, dtype=torch.int32),
        slot_mapping=torch.tensor(slots),
        query_lens=query_lens,
        context_lens=context_lens,
        max_query=max(query_lens),
        max_context=max(context_lens),
    )


@dataclass(frozen=True)
class Case:
    """One step: rows as (tokens already cached, query tokens), and the network's proportions."""

    name: str
    rows: tuple[tuple[int, int], ...]
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    consecutive: bool = False
    seed: int = 0


CASES = (
    Case("one token, the first of its sequence", ((0, 1),)),
    Case("one token at a block's end", ((15, 1), (31, 1))),
    Case("one token at a block's beginning", ((16, 1), (32, 1))),
    Case("decode rows of very different length", ((3, 1), (200, 1), (47, 1), (1100, 1), (0, 1))),
    Case("a prompt", ((0, 45),)),
    Case("a prompt of one block", ((0, 16),)),
    Case("a chunk after a cached prefix", ((37, 29),)),
    Case("a chunk across the fused kernel's splits", ((480, 70),)),
    Case("decode and prefill in one step", ((20, 1), (99, 1), (0, 13), (64, 40), (7, 2))),
    Case("two tokens", ((0, 2), (30, 2))),
    Case("grouped queries", ((20, 1), (131, 1), (5, 17)), heads=8, kv_heads=2),
    Case("one KV head", ((20, 1), (5, 17)), heads=4, kv_heads=1),
    Case("head size 128", ((20, 1), (77, 1), (5, 17)), heads=4, kv_heads=2, head_dim=128),
    Case("blocks of 64", ((20, 1), (130, 1), (5, 80)), block_size=64),
    Case("blocks of 256", ((20, 1), (300, 1), (250, 10)), block_size=256),
    Case("blocks of one", ((9, 1), (4, 6)), block_size=1),
    Case("blocks of an odd size", ((9, 1), (40, 1), (13, 25)), block_size=7),
    Case("blocks that follow each other", ((50, 1), (33, 20)), consecutive=True),
    Case("a window that is shorter than a block", ((70, 1), (3, 1), (31, 20)), window=5),
    Case("a window of several blocks", ((300, 1), (49, 1), (90, 40)), window=50),
    Case("a window of one", ((33, 1), (10, 9)), window=1),
    Case("a window that hides whole splits", ((1300, 1), (1200, 60)), window=100, block_size=32),
    Case("a window with grouped queries and blocks of an odd size", ((90, 1), (30, 30)), 8, 2, 64, 24, 33),
)


@dataclass(frozen=True)
class Inputs:
    """What a case's rows consist of: queries of the step, keys and values of each whole context."""

    query: Tensor  # [T, heads, head_dim]
    keys: list[Tensor]  # each [context, kv_heads, head_dim]
    values: list[Tensor]


def random_inputs(case: Case, dtype: torch.dtype) -> Inputs:
    """Scores of a few units' spread, so that a softmax is neither flat nor a single spike."""
    generator = torch.Generator().manual_seed(case.seed)

    def draw(count: int, heads: int, spread: float) -> Tensor:
        return (torch.randn(count, heads, case.head_dim, generator=generator) * spread).to(dtype)

    contexts = [start + count for start, count in case.rows]
    return Inputs(
        query=draw(sum(count for _, count in case.rows), case.heads, 2.0),
        keys=[draw(context, case.kv_heads, 1.0) for context in contexts],
        values=[draw(context, case.kv_heads, 1.0) for context in contexts],
    )


def run_case(case: Case, inputs: Inputs, implementation: str, kv_dtype: torch.dtype | None = None) -> Tensor:
    """Attention of the case's step [T, heads, head_dim] over a cache in which every slot that is not seen is NaN."""
    contexts = [start + count for start, count in case.rows]
    tables, num_blocks = block_tables(contexts, case.block_size, seed=None if case.consecutive else case.seed)
    cache = new_cache(
        num_blocks,
        case.block_size,
        case.kv_heads,
        case.head_dim,
        dtype=kv_dtype or inputs.query.dtype,
        device=CPU,
        implementation=implementation,
    )
    poison(cache)
    whole = [(0, context) for context in contexts]
    slots = step_metadata(whole, tables, case.block_size).slot_mapping
    keys, values = torch.cat(inputs.keys), torch.cat(inputs.values)
    seen = torch.cat([_seen(start, count, case.window) for start, count in case.rows])
    write_kv(keys[seen], values[seen], cache, slots[seen])
    return attention(
        inputs.query,
        cache,
        step_metadata(case.rows, tables, case.block_size),
        scale=case.head_dim**-0.5,
        window=case.window,
        implementation=implementation,
    )


def poison(cache: KVCache) -> None:
    """Every slot NaN: by its scale, where what is stored has none."""
    for part in cache.tensors():
        part.fill_(float("nan") if part.dtype.is_floating_point else 99)


def _seen(start: int, count: int, window: int | None) -> Tensor:
    """[context] bool: the keys that at least one of the row's queries sees."""
    first = 0 if window is None else max(0, start + 1 - window)
    return torch.arange(start + count) >= first


def alone(case: Case, inputs: Inputs, row: int) -> tuple[Case, Inputs]:
    """The same case with this row only."""
    begin = sum(count for _, count in case.rows[:row])
    count = case.rows[row][1]
    single = Inputs(inputs.query[begin : begin + count], [inputs.keys[row]], [inputs.values[row]])
    return replace(case, rows=(case.rows[row],), seed=case.seed + 1), single
