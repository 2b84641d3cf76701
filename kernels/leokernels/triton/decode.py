"""Attention of rows with one query token each: the split half and the combining half of flash decoding.

Decoding is bound by memory: each key and value is read once, for two multiplications each. To keep a whole GPU reading
even at batch 1, a context is split into chunks of 256 keys that are attended to independently (Dao et al., "Flash-
Decoding for long-context inference", 2023; the softmax kept up as in Milakov & Gimelshein, "Online normalizer
calculation for softmax", 2018), each leaving a normalized partial output and the logarithm of its sum of exponentials.
`decode_combine` weighs them together.

Chunks begin at multiples of 256 positions whatever else is in the batch, so a row's sums are the same alone and beside
others. How many programs share a row's chunks does depend on the batch, but only decides who computes, not what.

R rows, H heads, K KV heads, D head size, C chunks of which the longest row sees some part.
"""

from __future__ import annotations

import triton.language as tl

from leokernels.triton.jit import jit, kernel, start_next, wait_for_previous
from leokernels.triton.pages import cache_rows, load_tile, to_float32
from leokernels.triton.softmax import attend_tile, finish


@jit
def _chunks(context: tl.tensor, WINDOW: tl.constexpr, CHUNK: tl.constexpr) -> tl.tensor:
    """The first key that a row's query sees, the first chunk that has it, and how many chunks there are from there."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(context - WINDOW, 0)
    first_chunk = first // CHUNK
    return first, first_chunk, (context + CHUNK - 1) // CHUNK - first_chunk


@kernel(varying=("table_width", "chunks"), unaligned=("context_len", "block_table"))
def paged_decode(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    partial: tl.tensor,
    log_sums: tl.tensor,
    context_len: tl.tensor,
    block_table: tl.tensor,
    table_width: tl.tensor,
    chunks: tl.tensor,
    scale: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    QUANTIZED: tl.constexpr,
    CHUNK: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One head's query over every `num_programs(1)`-th chunk of one row. Grid (K, programs, R).

    query [R, H, D] by `token_stride` and `head_stride`; keys, values and their scales as in `pages`; context_len [R]
    and block_table [R, table_width] int32; `scale` is that of the scores times log2(e), so that exponentials are of 2.
    Writes partial [R, H, C, D] and log_sums [R, H, C] (base 2), both float32. WINDOW 0: none.

    Without matrix products: a single query has nothing to reuse, so tensor cores would compute 15 rows of padding.
    Moves `context * 2 D * element size` bytes a head and 8 D bytes a chunk of partial results; 4 D operations a key.
    Tile: KEYS keys by D, from tiles.decode.
    """
    start_next(EARLY)
    wait_for_previous(EARLY)
    head, row = tl.program_id(0), tl.program_id(2)
    context = tl.load(context_len + row)
    first, first_chunk, count = _chunks(context, WINDOW, CHUNK)
    table = block_table + row.to(tl.int64) * table_width
    dim = tl.arange(0, HEAD_DIM)
    q = tl.load(query + row.to(tl.int64) * token_stride + head * head_stride + dim).to(tl.float32) * scale
    for chunk in range(tl.program_id(1), count, tl.num_programs(1)):
        begin = (first_chunk + chunk) * CHUNK
        stop = tl.minimum(begin + CHUNK, context)
        if WINDOW > 0:
            begin = tl.maximum(begin, first // KEYS * KEYS)
        peak = -float("inf")
        total = 0.0
        mixed = tl.zeros([HEAD_DIM], tl.float32)
        for start in tl.range(begin, stop, KEYS, num_stages=STAGES):
            position = start + tl.arange(0, KEYS)
            seen = (position >= first) & (position < stop)
            rows = cache_rows(table, start, first, stop, head, KV_HEADS, BLOCK_SIZE, KEYS, True)
            k = to_float32(load_tile(keys, rows, HEAD_DIM))
            v = to_float32(load_tile(values, rows, HEAD_DIM))
            scores = tl.sum(k * q[None, :], 1)
            if QUANTIZED:
                scores *= tl.load(key_scales + rows)
            scores = tl.where(seen, scores, -float("inf"))
            higher = tl.maximum(peak, tl.max(scores, 0))
            shares = tl.exp2(scores - higher)
            kept = tl.exp2(peak - higher)
            total = total * kept + tl.sum(shares, 0)
            if QUANTIZED:
                shares *= tl.load(value_scales + rows)
            mixed = mixed * kept + tl.sum(shares[:, None] * v, 0)
            peak = higher
        place = (row.to(tl.int64) * HEADS + head) * chunks + chunk
        tl.store(partial + place * HEAD_DIM + dim, mixed / total)
        tl.store(log_sums + place, peak + tl.log2(total))


@kernel(varying=("table_width", "chunks"), unaligned=("context_len", "block_table"))
def paged_decode_grouped(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    partial: tl.tensor,
    log_sums: tl.tensor,
    context_len: tl.tensor,
    block_table: tl.tensor,
    table_width: tl.tensor,
    chunks: tl.tensor,
    scale: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    QUANTIZED: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """As paged_decode, for all the H / K heads that share a KV head at once: each key is read once for all of them.

    Their queries are the rows of a matrix, up to ROWS (at least 16) of them, so that tensor cores can multiply it.
    Moves `context * 2 D * element size` bytes a KV head and 8 D bytes a chunk and head of partial results.
    Tile: ROWS queries by KEYS keys, from tiles.decode.
    """
    SHARING: tl.constexpr = HEADS // KV_HEADS
    start_next(EARLY)
    wait_for_previous(EARLY)
    kv_head, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    context = tl.load(context_len + row)
    first, first_chunk, count = _chunks(context, WINDOW, CHUNK)
    table = block_table + row * table_width
    lane = tl.arange(0, ROWS)
    real = lane < SHARING
    head = kv_head * SHARING + lane
    dim = tl.arange(0, HEAD_DIM)[None, :]
    q = tl.load(query + row * token_stride + head[:, None] * head_stride + dim, mask=real[:, None], other=0.0)
    cache = (keys, values, key_scales, value_scales)
    for chunk in range(tl.program_id(1), count, tl.num_programs(1)):
        begin = (first_chunk + chunk) * CHUNK
        stop = tl.minimum(begin + CHUNK, context)
        if WINDOW > 0:
            begin = tl.maximum(begin, first // KEYS * KEYS)
        mixed = tl.zeros([ROWS, HEAD_DIM], tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        peak = tl.full([ROWS], -float("inf"), tl.float32)
        for start in range(begin, stop, KEYS):
            position = start + tl.arange(0, KEYS)
            seen = (position >= first) & (position < stop)
            rows = cache_rows(table, start, first, stop, kv_head, KV_HEADS, BLOCK_SIZE, KEYS, True)
            mixed, total, peak = attend_tile(
                q, mixed, total, peak, cache, rows, seen[None, :], scale, HEAD_DIM, QUANTIZED, True, False
            )
        place = (row * HEADS + head) * chunks + chunk
        result = finish(mixed, total, QUANTIZED)
        tl.store(partial + place[:, None] * HEAD_DIM + dim, result, mask=real[:, None])
        tl.store(log_sums + place, peak * scale + tl.log2(total), mask=real)


@kernel(varying=("chunks",), unaligned=("context_len",))
def decode_combine(
    partial: tl.tensor,
    log_sums: tl.tensor,
    out: tl.tensor,
    context_len: tl.tensor,
    chunks: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    TAKEN: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One head's output of one row, from the partial ones of its chunks, in their order. Grid (H, R).

    partial [R, H, C, D] and log_sums [R, H, C] as paged_decode leaves them; those past a row's own number of chunks are
    not read. Writes out [R, H, D] by `token_stride` and `head_stride`, zeros for a row without keys, as a CUDA graph's
    padding has. Moves 4 D bytes a chunk. Takes TAKEN chunks at a time, from tiles.COMBINE_CHUNKS.
    """
    start_next(EARLY)
    wait_for_previous(EARLY)
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    _, _, count = _chunks(tl.load(context_len + row), WINDOW, CHUNK)
    place = (row * HEADS + head) * chunks
    dim = tl.arange(0, HEAD_DIM)
    peak = -float("inf")
    total = 0.0
    mixed = tl.zeros([HEAD_DIM], tl.float32)
    for begin in range(0, count, TAKEN):
        chunk = begin + tl.arange(0, TAKEN)
        real = chunk < count
        log_sum = tl.load(log_sums + place + chunk, mask=real, other=-float("inf"))
        parts = tl.load(partial + (place + chunk)[:, None] * HEAD_DIM + dim[None, :], mask=real[:, None], other=0.0)
        higher = tl.maximum(peak, tl.max(log_sum, 0))
        shares = tl.exp2(log_sum - higher)
        kept = tl.exp2(peak - higher)
        total = total * kept + tl.sum(shares, 0)
        mixed = mixed * kept + tl.sum(shares[:, None] * parts, 0)
        peak = higher
    result = mixed / tl.where(total > 0, total, 1.0)
    tl.store(out + row * token_stride + head * head_stride + dim, result.to(out.dtype.element_ty))
