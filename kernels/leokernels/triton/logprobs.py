"""Log-probabilities of given and of most likely tokens, on the device.

They are of the model's own distribution: log-softmax of its logits over the ids that have a token, before any edit.
Order and rank are by logit, among equals the lower id first, so the token of rank r is the r-th of the most likely.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from leokernels.triton.jit import jit, kernel, launch_options
from leokernels.triton.logits import bit_of

TILE, WARPS = 2048, 8  # ids at a time, 8 a thread
LOWEST = tl.constexpr(-0x80000000)  # below the key of every number


class Logprobs(NamedTuple):
    """R rows. What is not asked for is not written: rows of count -1, and columns from the row's count on.

    A row whose logits are not finite has a logprob of NaN, a rank of 0 and no most likely tokens.
    """

    logprob: Tensor  # [R] float32, of the given token
    rank: Tensor  # [R] int32; 1 is the most likely
    top_ids: Tensor  # [R, most] int32
    top_logprobs: Tensor  # [R, most] float32


@jit
def _logits(line: tl.tensor, dead: tl.tensor, ids: tl.tensor, VOCAB: tl.constexpr) -> tl.tensor:
    """A row's logits, float32: -inf for ids without a token, and inf, which no sound row has, for what is no number."""
    x = tl.load(line + ids, mask=ids < VOCAB, other=-float("inf")).to(tl.float32)
    x = tl.where(bit_of(dead, ids, VOCAB), -float("inf"), x)
    return tl.where(x == x, x, float("inf"))


@jit
def _key(x: tl.tensor) -> tl.tensor:
    """Integers, int32, that sort as the floats do: their bits, the sign folded, -0 taken for 0. Its own inverse."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@kernel(varying=("most",), unaligned=("tokens", "counts"))
def gather_logprobs_kernel(
    logits: tl.tensor,
    tokens: tl.tensor,
    counts: tl.tensor,
    dead: tl.tensor,
    logprob: tl.tensor,
    rank: tl.tensor,
    top_ids: tl.tensor,
    top_logprobs: tl.tensor,
    most: tl.tensor,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One row; a row of count -1 is nothing to do. Grid (R,).

    Reads the row once for its peak, once for the sum of exponentials and the rank, and once for each of its most likely
    tokens: the next one is the largest that comes after the one before in the order of (logit, id). No sort, and for
    the 20 at most that are asked for the row stays in the first-level cache: E V bytes from memory, about 25 operations
    an id and 8 more for each most likely token.
    """
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    if count >= 0:
        line = logits + row * VOCAB
        value, last = tl.full([], float("inf"), tl.float32), tl.full([], -1, tl.int32)  # before everything
        peak, _ = _next(line, dead, value, last, VOCAB, TILE)
        if tl.abs(peak) < float("inf"):
            token = tl.load(tokens + row).to(tl.int32)
            chosen = tl.load(line + token).to(tl.float32)
            log_sum, place = _sum_and_rank(line, dead, peak, chosen, token, VOCAB, TILE)
            tl.store(logprob + row, chosen - peak - log_sum)
            tl.store(rank + row, place)
            for number in range(0, tl.minimum(count, most)):
                value, last = _next(line, dead, value, last, VOCAB, TILE)
                tl.store(top_ids + row * most + number, last)
                tl.store(top_logprobs + row * most + number, value - peak - log_sum)
        else:
            tl.store(logprob + row, float("nan"))
            tl.store(rank + row, 0)


@jit
def _next(
    line: tl.tensor,
    dead: tl.tensor,
    value: tl.tensor,
    last: tl.tensor,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The logit and the id that come next after `value` and `last` in the order."""
    limit = _key(value)
    best = tl.full([TILE], LOWEST, tl.int32)
    best_id = tl.full([TILE], VOCAB, tl.int32)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        key = _key(_logits(line, dead, ids, VOCAB))
        left = (ids < VOCAB) & ((key < limit) | ((key == limit) & (ids > last)))
        better = left & (key > best)  # among equals the lower id stays
        best_id = tl.where(better, ids, best_id)
        best = tl.where(better, key, best)
    peak = tl.max(best, 0)
    bits = peak ^ ((peak >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True), tl.min(tl.where(best == peak, best_id, VOCAB), 0)


@jit
def _sum_and_rank(
    line: tl.tensor,
    dead: tl.tensor,
    peak: tl.tensor,
    chosen: tl.tensor,
    token: tl.tensor,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The logarithm of the sum of exponentials less the peak, and the place of `token`, whose logit is `chosen`."""
    total = tl.zeros([TILE], tl.float32)
    before = tl.zeros([TILE], tl.int32)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        x = _logits(line, dead, ids, VOCAB)
        total += tl.exp(x - peak)
        before += ((x > chosen) | ((x == chosen) & (ids < token))).to(tl.int32)
    return tl.log(tl.sum(total, 0)), 1 + tl.sum(before, 0)


def gather_logprobs(logits: Tensor, tokens: Tensor, counts: Tensor, dead: Tensor, most: int) -> Logprobs:
    """Log-probabilities of `tokens` [R] int64 under the rows of [R, V] contiguous logits, of any float dtype.

    `counts` [R] int32: as many most likely tokens as that, up to `most`; -1: the row is not asked for. `dead` is that
    of SamplingState. The logits are those of the model, as they are before process_logits.
    """
    rows, vocab = logits.shape
    device = logits.device
    found = Logprobs(
        torch.empty(rows, dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(rows, most, dtype=torch.int32, device=device),
        torch.empty(rows, most, dtype=torch.float32, device=device),
    )
    if rows:
        tile = min(TILE, triton.next_power_of_2(vocab))
        options = launch_options(warps=min(WARPS, max(1, tile // 256)), stages=1)
        gather_logprobs_kernel[(rows,)](logits, tokens, counts, dead, *found, most, vocab, tile, **options)
    return found
