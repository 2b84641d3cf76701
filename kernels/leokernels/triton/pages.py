"""Where a sequence's keys and values lie: from positions, through the block table, to rows of the cache.

A cache [num_blocks, block_size, kv_heads, head_dim] without gaps is a matrix of `num_blocks * block_size * kv_heads`
rows of `head_dim`, and its scales are a vector with one element for each of these rows. So one row number serves keys,
values and both their scales. It fits 32 bits (2**31 rows of 8-bit keys of 64 would be 128 GiB a layer); the offset of
the row's elements does not.
"""

from __future__ import annotations

import triton.language as tl

from leokernels.triton.jit import jit


@jit
def cache_rows(
    table: tl.tensor,
    start: tl.tensor,
    seen: tl.tensor,
    kv_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
) -> tl.tensor:
    """The cache's rows [KEYS] int32 of the positions from `start` on, a multiple of KEYS of which one at least is seen.

    `table` points at the sequence's blocks, `seen` [KEYS] says which positions may be read. With blocks of whole
    tiles, a tile lies in one block: a single entry is read. With others every position looks up its own; for those that
    are not seen, block 0 stands in.
    """
    lane = tl.arange(0, KEYS)
    if BLOCK_SIZE % KEYS == 0:
        block = tl.load(table + start // BLOCK_SIZE)
        slot = block * BLOCK_SIZE + start % BLOCK_SIZE + lane
    else:
        block = tl.load(table + (start + lane) // BLOCK_SIZE, mask=seen, other=0)
        slot = block * BLOCK_SIZE + (start + lane) % BLOCK_SIZE
    return slot * KV_HEADS + kv_head


@jit
def load_tile(
    cache: tl.tensor, rows: tl.tensor, seen: tl.tensor, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr
) -> tl.tensor:
    """Keys or values [KEYS, HEAD_DIM] as stored. MASKED: zeros instead of what is not seen, which may be NaN."""
    pointers = cache + rows.to(tl.int64)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    if MASKED:
        return tl.load(pointers, mask=seen[:, None], other=0.0)
    return tl.load(pointers)


@jit
def load_scales(scales: tl.tensor, rows: tl.tensor, seen: tl.tensor, MASKED: tl.constexpr) -> tl.tensor:
    """Scales [KEYS] float32 of these rows. MASKED: zeros instead of what is not seen."""
    if MASKED:
        return tl.load(scales + rows, mask=seen, other=0.0)
    return tl.load(scales + rows)
