"""Noise that depends on nothing but (seed, choice, position, token id): a counter-based generator on the device.

Philox 4x32 with ten rounds, from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
One call encrypts a counter of four 32-bit words under a key of two and gives four random words. The key is the seed,
the counter (position low, position high, choice, 1 + id // 4), and token id takes word `id % 4`. So the noise of an id
is the same in every batch, tile, slot and process, and no state is carried along. A fourth word of 0 is left to those
who need one number a position, not one an id.
"""

from __future__ import annotations

import triton.language as tl

from leokernels.triton.jit import jit

ROUNDS = tl.constexpr(10)
# The multipliers and the Weyl increments of the key: section 3.3 and table 2 of the paper.
MULTIPLIER_0 = tl.constexpr(0xD2511F53)
MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
WEYL_0 = tl.constexpr(0x9E3779B9)
WEYL_1 = tl.constexpr(0xBB67AE85)


@jit
def philox4x32(c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor, k0: tl.tensor, k1: tl.tensor) -> tl.tensor:
    """Encrypt counters (c0, c1, c2, c3) with keys (k0, k1): four random words. All uint32, of shapes that broadcast.

    About 80 integer instructions for four words.
    """
    for _ in tl.static_range(ROUNDS):
        high0, low0 = tl.umulhi(c0, MULTIPLIER_0), tl.mul(c0, MULTIPLIER_0, sanitize_overflow=False)
        high1, low1 = tl.umulhi(c2, MULTIPLIER_1), tl.mul(c2, MULTIPLIER_1, sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, WEYL_0, sanitize_overflow=False)
        k1 = tl.add(k1, WEYL_1, sanitize_overflow=False)
    return c0, c1, c2, c3


@jit
def noise_words(
    seed: tl.tensor, choice: tl.tensor, position: tl.tensor, start: tl.tensor, COUNT: tl.constexpr
) -> tl.tensor:
    """The random words [COUNT] uint32 of the ids from `start` on; COUNT and `start` are multiples of 4.

    seed, choice and position are int64 numbers; the seed's bits are those of an unsigned one.
    """
    group = (start // 4 + 1 + tl.arange(0, COUNT // 4)).to(tl.uint32)
    none = tl.zeros([COUNT // 4], tl.uint32)
    w0, w1, w2, w3 = philox4x32(
        none + (position & 0xFFFFFFFF).to(tl.uint32),
        none + ((position >> 32) & 0xFFFFFFFF).to(tl.uint32),
        none + (choice & 0xFFFFFFFF).to(tl.uint32),
        group,
        none + (seed & 0xFFFFFFFF).to(tl.uint32),
        none + ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32),
    )
    # [groups, 2, 2]: the last axis adds 0 or 1 to the word's number, the middle one 0 or 2. Flat, they are in order.
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [COUNT])


@jit
def exponential(words: tl.tensor) -> tl.tensor:
    """Exponentially distributed numbers of mean 1, float32, from random words, uint32: `-log(1 - v)`, v in (0, 1).

    The small ones decide a draw. They are as fine as the words, a multiple of 2**-32 and never 0, because the logarithm
    is of 1 - v, by its series where v is small: of a float32 near 1 it would come in steps of 2**-24.
    """
    v = tl.minimum((words.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    series = v * (1 + v * (0.5 + v * (1 / 3 + v * (0.25 + v * (0.2 + v * (1 / 6))))))
    return tl.where(v < 0.0625, series, -tl.log(1 - v))
