"""One tile of FlashAttention-2: scores, online softmax and weighted values, by matrix products.

Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023, algorithm 1. Three
numbers are kept for every query: the highest score so far (`peak`), the sum of exponentials relative to it (`total`),
and the values weighted by those exponentials (`mixed`); a higher score rescales the latter two. A tile in which a query
sees nothing changes none of its bits, so it does not matter how many such tiles its neighbours make it pass.
"""

from __future__ import annotations

import triton.language as tl

from leokernels.triton.jit import jit
from leokernels.triton.pages import load_tile

VALUE_UNIT = tl.constexpr(64.0)  # a scale is at most 1/127 of its values' largest: times this, it is of their size


@jit
def attend_tile(
    q: tl.tensor,
    mixed: tl.tensor,
    total: tl.tensor,
    peak: tl.tensor,
    cache: tl.tuple,
    rows: tl.tensor,
    visible: tl.tensor,
    scale: tl.tensor,
    HEAD_DIM: tl.constexpr,
    QUANTIZED: tl.constexpr,
    MASKED: tl.constexpr,
    BLIND: tl.constexpr,
) -> tl.tensor:
    """`mixed` [M, D], `total` [M] and `peak` [M], float32, with the keys of the cache's `rows` [N] added.

    q [M, D]; `cache` is keys, values and the scales of both. `visible` [M, N] says which query sees which key; ignored
    unless MASKED. BLIND: a query may have met no key so far. `scale` > 0 is that of the scores times log2(e).

    8-bit caches (QUANTIZED): what is stored is exact in the dtype of q. The keys' scales multiply the scores, the
    values' the shares, times VALUE_UNIT, so that small values do not push shares below what float16 can hold;
    `finish` takes it out again.
    """
    keys, values, key_scales, value_scales = cache
    k = load_tile(keys, rows, HEAD_DIM)
    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
    if QUANTIZED:
        scores *= tl.load(key_scales + rows)[None, :]
    if MASKED:
        scores = tl.where(visible, scores, -float("inf"))
    higher = tl.maximum(peak, tl.max(scores, 1))
    offset = higher * scale
    if BLIND:
        offset = tl.where(higher == -float("inf"), 0.0, offset)
    shares = tl.exp2(scores * scale - offset[:, None])
    kept = tl.exp2(peak * scale - offset)
    total = total * kept + tl.sum(shares, 1)
    if QUANTIZED:
        shares *= (tl.load(value_scales + rows) * VALUE_UNIT)[None, :]
    v = load_tile(values, rows, HEAD_DIM)
    mixed = tl.dot(shares.to(q.dtype), v.to(q.dtype), mixed * kept[:, None], input_precision="ieee")
    return mixed, total, higher


@jit
def finish(mixed: tl.tensor, total: tl.tensor, QUANTIZED: tl.constexpr) -> tl.tensor:
    """The softmax's mixture [M, D] float32, zeros where a query met no key."""
    divisor = tl.where(total > 0, total, 1.0)
    if QUANTIZED:
        divisor *= VALUE_UNIT
    return mixed / divisor[:, None]
