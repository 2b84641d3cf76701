"""Where a sequence's keys and values lie: from positions, through the block table, to rows of the cache.

A cache [num_blocks, block_size, kv_heads, head_dim] without gaps is a matrix of `num_blocks * block_size * kv_heads`
rows of `head_dim`, and its scales are a vector with one element for each of these rows. So one row number serves keys,
values and both their scales. It fits 32 bits (2**31 rows of 8-bit keys of 64 would be 128 GiB a layer); the offset of
the row's elements does not.
"""

from __future__ import annotations

import triton.language as tl

from leokernels.triton.jit import jit

# Bits of 1.5 * 2**23 as a float32, whose last digit is 1: a small integer added to them is added to the number.
WHOLE_BITS = tl.constexpr(0x4B400000)
WHOLE = tl.constexpr(12582912.0)


@jit
def cache_rows(
    table: tl.tensor,
    start: tl.tensor,
    lowest: tl.tensor,
    stop: tl.tensor,
    kv_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """The cache's rows [KEYS] int32 of the positions from `start` on, a multiple of KEYS. `table`: the row's blocks.

    MASKED: only positions from `lowest` to `stop` may be read, at least one of the tile. The others get the row of the
    nearest that may, whose finite values then count with a weight of zero: as a mask on the loads would, since what is
    in unseen slots may be NaN, but for less (masked loads of values made registers spill on sm_80).

    With blocks of whole tiles, a tile lies in one block, and a single entry of the table is read.
    """
    position = start + tl.arange(0, KEYS)
    if MASKED:
        position = tl.minimum(tl.maximum(position, lowest), stop - 1)
    block = tl.load(table + (start if BLOCK_SIZE % KEYS == 0 else position) // BLOCK_SIZE)
    return (block * BLOCK_SIZE + position % BLOCK_SIZE) * KV_HEADS + kv_head


@jit
def load_tile(cache: tl.tensor, rows: tl.tensor, HEAD_DIM: tl.constexpr) -> tl.tensor:
    """Keys or values [KEYS, HEAD_DIM] as stored."""
    return tl.load(cache + rows.to(tl.int64)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])


@jit
def to_float32(stored: tl.tensor) -> tl.tensor:
    """What is stored, exactly. int8 by an addition each of integers and of floats, of which a multiprocessor does eight
    times as many a cycle as of its own conversions.
    """
    if stored.dtype == tl.int8:
        return (stored.to(tl.int32) + WHOLE_BITS).to(tl.float32, bitcast=True) - WHOLE
    return stored.to(tl.float32)
