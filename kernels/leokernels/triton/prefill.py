"""Attention of rows with any number of query tokens over their paged keys: FlashAttention-2, forward, causal, ragged.

Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023. A program takes a tile of
queries of one row and walks over the tiles of keys they see. The heads that share a KV head are packed into the tile
(for 8 of them, 16 tokens by 8 heads), so that each key is read once for all of them.

Tiles begin at multiples of their size in the sequence, not in the chunk: a query meets the same tiles of keys in the
same order however its prompt was cut into chunks, and whatever of it was cached. Of a chunk's first tile only the
queries from the chunk's beginning on are computed.

Keys that every query of the tile sees are walked over without masks; only the diagonal, and the edge of a sliding
window, pay for them. Tiles with the most keys start first, so that the last program to end is a short one.
"""

from __future__ import annotations

import triton.language as tl

from leokernels.triton.jit import jit, kernel
from leokernels.triton.pages import cache_rows
from leokernels.triton.softmax import attend_tile, finish


@jit
def _walk(
    q: tl.tensor,
    mixed: tl.tensor,
    total: tl.tensor,
    peak: tl.tensor,
    position: tl.tensor,
    lowest: tl.tensor,
    begin: tl.tensor,
    stop: tl.tensor,
    table: tl.tensor,
    cache: tl.tuple,
    kv_head: tl.tensor,
    scale: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    QUANTIZED: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """The softmax's state after the tiles of keys from `begin`, a multiple of KEYS, to `stop`.

    MASKED: query `i` sees key `j` if `position[i] - WINDOW < j <= position[i]`, and keys below `lowest` or from `stop`
    on are not read. Otherwise every query sees all of them, up to `stop`, a multiple of KEYS too.
    """
    for start in tl.range(begin, stop, KEYS):
        key = start + tl.arange(0, KEYS)
        visible = key[None, :] <= position[:, None]
        if WINDOW > 0:
            visible &= key[None, :] > position[:, None] - WINDOW
        rows = cache_rows(table, start, lowest, stop, kv_head, KV_HEADS, BLOCK_SIZE, KEYS, MASKED)
        mixed, total, peak = attend_tile(
            q, mixed, total, peak, cache, rows, visible, scale, HEAD_DIM, QUANTIZED, MASKED, WINDOW > 0
        )
    return mixed, total, peak


@kernel(varying=("table_width", "first_row"), unaligned=("query_start", "context_len", "block_table"))
def paged_prefill(
    query: tl.tensor,
    out: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    query_start: tl.tensor,
    context_len: tl.tensor,
    block_table: tl.tensor,
    first_row: tl.tensor,
    table_width: tl.tensor,
    scale: tl.tensor,
    query_token: tl.tensor,
    query_head: tl.tensor,
    out_token: tl.tensor,
    out_head: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    QUANTIZED: tl.constexpr,
    PACKED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """One tile of queries of one row and KV head. Grid (tiles, K, R - first_row).

    R rows, T tokens, H heads, K KV heads, D head size. query and out [T, H, D] by the strides of tokens and heads; keys
    and values with their scales as in `pages`; query_start [R + 1], context_len [R] and block_table [R, table_width]
    int32; `scale` is that of the scores times log2(e). PACKED is the heads that share a KV head, up to the next power
    of two; WINDOW 0: none.

    For t query tokens that see n keys each on average: 4 t n H D operations; reads t H D queries and, for each tile of
    ROWS / PACKED tokens, its n keys and values once a KV head: ROWS operations for each byte of a 16-bit cache.
    Tile: ROWS queries by KEYS keys, from tiles.prefill.
    """
    SHARING: tl.constexpr = HEADS // KV_HEADS
    TOKENS: tl.constexpr = ROWS // PACKED
    kv_head, row = tl.program_id(1), first_row + tl.program_id(2)
    token_begin = tl.load(query_start + row)
    count = tl.load(query_start + row + 1) - token_begin
    context = tl.load(context_len + row)
    start = context - count
    tile_begin = ((context - 1) // TOKENS - tl.program_id(0)) * TOKENS
    if (count <= 0) | (tile_begin < 0) | (tile_begin + TOKENS <= start):
        return

    lane = tl.arange(0, ROWS)
    position = tile_begin + lane // PACKED
    computed = (position >= start) & (position < context) & (lane % PACKED < SHARING)
    token = (token_begin + position - start).to(tl.int64)[:, None]
    head = (kv_head * SHARING + lane % PACKED)[:, None]
    dim = tl.arange(0, HEAD_DIM)[None, :]
    q = tl.load(query + token * query_token + head * query_head + dim, mask=computed[:, None], other=0.0)

    lowest, low, full, diagonal = _key_range(tile_begin, start, WINDOW, TOKENS, KEYS)
    stop = tl.minimum(tile_begin + TOKENS, context)
    table = block_table + row.to(tl.int64) * table_width
    cache = (keys, values, key_scales, value_scales)
    mixed = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    if WINDOW > 0:
        mixed, total, peak = _walk(
            q, mixed, total, peak, position, lowest, low, full, table, cache, kv_head, scale,
            KV_HEADS, HEAD_DIM, BLOCK_SIZE, WINDOW, QUANTIZED, KEYS, True,
        )  # fmt: skip
    mixed, total, peak = _walk(
        q, mixed, total, peak, position, lowest, full, diagonal, table, cache, kv_head, scale,
        KV_HEADS, HEAD_DIM, BLOCK_SIZE, WINDOW, QUANTIZED, KEYS, False,
    )  # fmt: skip
    mixed, total, peak = _walk(
        q, mixed, total, peak, position, lowest, tl.maximum(low, diagonal), stop, table, cache, kv_head, scale,
        KV_HEADS, HEAD_DIM, BLOCK_SIZE, WINDOW, QUANTIZED, KEYS, True,
    )  # fmt: skip
    result = finish(mixed, total, QUANTIZED).to(out.dtype.element_ty)
    tl.store(out + token * out_token + head * out_head + dim, result, mask=computed[:, None])


@jit
def _key_range(
    tile_begin: tl.tensor, start: tl.tensor, WINDOW: tl.constexpr, TOKENS: tl.constexpr, KEYS: tl.constexpr
) -> tl.tensor:
    """Where the walk over the keys of the tokens from `tile_begin` on begins and changes, of which those from `start`
    on are computed: the lowest key that one of these sees, and multiples of KEYS: the walk's beginning, the first key
    from which on all tokens of the tile see them, and the first beyond which not all do.
    """
    diagonal = tile_begin // KEYS * KEYS
    if WINDOW > 0:
        lowest = tl.maximum(tl.maximum(tile_begin, start) + 1 - WINDOW, 0)
        low = lowest // KEYS * KEYS
        seen_by_last = tl.maximum(tile_begin + TOKENS - WINDOW, 0)
        full = tl.minimum(tl.maximum((seen_by_last + KEYS - 1) // KEYS * KEYS, low), diagonal)
    else:
        lowest = 0
        low = 0
        full = 0
    return lowest, low, full, diagonal
