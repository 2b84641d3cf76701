"""min_p, then top_k, then top_p, of one row of weights, without sorting it: by bisection on a threshold.

Tokens are ordered by weight, and among equal weights the lower id comes first. Each of the three keeps a beginning of
that order, so what is left is always described by two numbers: the bits of a threshold and an id. Kept is what weighs
more than the threshold, and what weighs just as much and has an id up to that one.

The bits of a float >= 0, read as an integer, sort like the float. A pass over the row sums up what weighs at least as
much as the middle of an interval of such integers, as threshold searches on GPUs do (FlashInfer's "Sorting-free GPU
kernels for LLM sampling", 2025, is one). It also finds the two weights of the row next to the middle, so that the
interval ends at weights that occur: it closes exactly, on one weight, after 30 passes at the most and typically 8 to
15. How many of the ids with that weight are needed is then a division, and which ones, one more pass.

Masses are summed in float64, where adding float32 weights is exact but for the very small ones; so the kept ids do not
depend on tiles or on the order of summing.

A pass reads 4 bytes an id, from the first-level cache after the first (128 KB for 32,000 ids), and takes about 8
operations an id. The row is read TILE ids at a time, and reduced once at the end of a pass.
"""

from __future__ import annotations

import triton.language as tl

from leokernels.triton.jit import jit

ONE_BITS = tl.constexpr(0x3F800000)  # of 1.0, the largest weight of a row
NONE_BELOW = tl.constexpr(-1)
NONE_ABOVE = tl.constexpr(0x7FFFFFFF)


@jit
def is_kept(bits: tl.tensor, ids: tl.tensor, threshold: tl.tensor, last: tl.tensor) -> tl.tensor:
    """Whether the ids with these weights are among what `truncate` kept. Ids without weight never are."""
    return (bits > 0) & ((bits > threshold) | ((bits == threshold) & (ids <= last)))


@jit
def truncate(
    line: tl.tensor, top_k: tl.tensor, top_p: tl.tensor, min_p: tl.tensor, VOCAB: tl.constexpr, TILE: tl.constexpr
) -> tl.tensor:
    """What is kept of a row of weights, of which the largest is 1: the threshold's bits and the last id, both int32.

    `line` points at the bits of the row's weights, [VOCAB] int32.
    top_k: an integer, VOCAB or more keeps all. top_p and min_p: float64; 1 or more and 0 keep all. top_p is a share of
    the mass that min_p and top_k leave; a token at least is always kept.
    """
    threshold = tl.full([], 0, tl.int32)
    last = tl.full([], VOCAB, tl.int32)
    if min_p > 0:
        threshold = _least(line, min_p, VOCAB, TILE)
    if top_k < VOCAB:
        threshold, above = _bisect(line, threshold, top_k, False, VOCAB, TILE)
        last = _nth(line, threshold, top_k - above, VOCAB, TILE)
    if top_p < 1:
        goal = tl.maximum(top_p * _mass(line, threshold, last, VOCAB, TILE), 1e-300)
        reached, weight = _bisect(line, threshold, goal, True, VOCAB, TILE)
        end = _nth(line, reached, _needed(goal, weight, reached, VOCAB), VOCAB, TILE)
        last = tl.where(reached == threshold, tl.minimum(last, end), end)
        threshold = reached
    return threshold, last


@jit
def _least(line: tl.tensor, share: tl.tensor, VOCAB: tl.constexpr, TILE: tl.constexpr) -> tl.tensor:
    """The bits of the smallest weight that is at least `share`, float64 up to 1, of the largest, which is 1."""
    least = tl.full([TILE], ONE_BITS, tl.int32)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        bits = tl.load(line + ids, mask=ids < VOCAB, other=0)
        enough = bits.to(tl.float32, bitcast=True).to(tl.float64) >= share
        least = tl.minimum(least, tl.where(enough, bits, ONE_BITS))
    return tl.min(least, 0)


@jit
def _mass(line: tl.tensor, threshold: tl.tensor, last: tl.tensor, VOCAB: tl.constexpr, TILE: tl.constexpr) -> tl.tensor:
    """The sum, float64, of the kept weights."""
    mass = tl.zeros([TILE], tl.float64)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        bits = tl.load(line + ids, mask=ids < VOCAB, other=0)
        weight = bits.to(tl.float32, bitcast=True).to(tl.float64)
        mass += tl.where(is_kept(bits, ids, threshold, last), weight, 0.0)
    return tl.sum(mass, 0)


@jit
def _bisect(
    line: tl.tensor,
    floor: tl.tensor,
    goal: tl.tensor,
    MASS: tl.constexpr,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The bits of the largest weight such that it and what weighs more reach `goal`, and what the latter amount to.

    Never below `floor`, even where the goal is never reached. Amounts are masses, float64, or (not MASS) numbers of
    ids. Always true: `low` is the floor or a weight that reaches the goal, what weighs `high` or more is `above`, and
    less than the goal.
    """
    low, high = floor, tl.full([], ONE_BITS + 1, tl.int32)
    above = tl.full([], 0, tl.float64 if MASS else tl.int32)
    while high - low > 1:
        middle = low + (high - low) // 2
        amount, next_up, next_down = _split(line, middle, MASS, VOCAB, TILE)
        if amount >= goal:
            low = next_up
        else:
            high = tl.maximum(next_down, low) + 1
            above = amount
    return low, above


@jit
def _split(
    line: tl.tensor, middle: tl.tensor, MASS: tl.constexpr, VOCAB: tl.constexpr, TILE: tl.constexpr
) -> tl.tensor:
    """One pass: what weighs `middle` or more amounts to, the least of these weights, and the largest below."""
    amount = tl.zeros([TILE], tl.float64 if MASS else tl.int32)
    up = tl.full([TILE], NONE_ABOVE, tl.int32)
    down = tl.full([TILE], NONE_BELOW, tl.int32)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        bits = tl.load(line + ids, mask=ids < VOCAB, other=0)
        over = bits >= middle
        if MASS:
            amount += tl.where(over, bits.to(tl.float32, bitcast=True), 0.0).to(tl.float64)
        else:
            amount += over.to(tl.int32)
        up = tl.minimum(up, tl.where(over, bits, NONE_ABOVE))
        down = tl.maximum(down, tl.where(over, NONE_BELOW, bits))
    return tl.sum(amount, 0), tl.min(up, 0), tl.max(down, 0)


@jit
def _needed(goal: tl.tensor, above: tl.tensor, bits: tl.tensor, VOCAB: tl.constexpr) -> tl.tensor:
    """How many ids of this weight bring the mass `above` to `goal`: at least one, all (VOCAB) where it weighs nothing.

    The quotient is rounded, so the sums decide.
    """
    needed = tl.full([], VOCAB, tl.int32)
    if bits > 0:
        unit = bits.to(tl.float32, bitcast=True).to(tl.float64)
        count = tl.minimum(tl.maximum(tl.ceil((goal - above) / unit), 1.0), VOCAB)
        if (count > 1) & (above + (count - 1) * unit >= goal):
            count -= 1
        if above + count * unit < goal:
            count += 1
        needed = count.to(tl.int32)
    return needed


@jit
def _nth(line: tl.tensor, threshold: tl.tensor, count: tl.tensor, VOCAB: tl.constexpr, TILE: tl.constexpr) -> tl.tensor:
    """The id of the `count`-th that weighs just `threshold`, by rising id; VOCAB if there are not more than that."""
    found = tl.full([], VOCAB, tl.int32)
    before = tl.full([], 0, tl.int32)
    for start in range(0, VOCAB, TILE):
        ids = start + tl.arange(0, TILE)
        equal = (tl.load(line + ids, mask=ids < VOCAB, other=0) == threshold) & (ids < VOCAB)
        number = before + tl.cumsum(equal.to(tl.int32), 0)
        found = tl.minimum(found, tl.min(tl.where(equal & (number == count), ids, VOCAB), 0))
        before += tl.sum(equal.to(tl.int32), 0)
    return found
