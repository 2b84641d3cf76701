"""Uniform random numbers that depend on nothing but (seed, choice, position): a counter-based generator.

Philox 4x32 with ten rounds, from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
There is no state to carry along: a token that is sampled again after a preemption, in another batch or on another
machine meets the same number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
# The multipliers and the Weyl increments of the key, section 3.3 and table 2 of the paper.
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)

AHEAD = 64  # positions: seventy numpy calls for as many numbers, not for each

Words = NDArray[np.uint64]  # 32-bit words, each in a uint64 so that a product of two fits
FourWords = tuple[Words, Words, Words, Words]


def philox4x32(counter: FourWords, key: tuple[Words, Words]) -> FourWords:
    """Encrypt N counters of four 32-bit words, each [N], with N keys of two: four random words, each [N]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0 = c0 * MULTIPLIERS[0]
        product1 = c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (product1 >> HALF) ^ c1 ^ k0, product1 & LOW, (product0 >> HALF) ^ c3 ^ k1, product0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def uniforms(seed: Words, choice: Words, position: Words) -> NDArray[np.float64]:
    """One number in [0, 1) for each row: 53 bits, a multiple of 2**-53. All arguments are [R] uint64.

    `choice` (the index among a request's n) is below 2**32. The fourth word of the counter stays 0, for other uses of
    the same seed.
    """
    counter = (position & LOW, position >> HALF, choice & LOW, np.zeros_like(choice))
    high, low, _, _ = philox4x32(counter, (seed & LOW, seed >> HALF))
    bits = (high << np.uint64(21)) | (low >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53


class Noise:
    """The uniform numbers of every slot, made for some positions ahead."""

    def __init__(self, max_slots: int) -> None:
        self._seed: Words = np.zeros(max_slots, dtype=np.uint64)
        self._choice: Words = np.zeros(max_slots, dtype=np.uint64)
        self._made = np.full(max_slots, -1, dtype=np.int64)  # which AHEAD positions a slot's numbers are for
        self._numbers = np.empty((max_slots, AHEAD))

    def set_slot(self, slot: int, seed: int, choice: int) -> None:
        self._seed[slot], self._choice[slot], self._made[slot] = seed, choice, -1

    def at(self, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """The numbers of these slots at these positions; all [R]."""
        stretch, place = np.divmod(positions, AHEAD)
        stale = self._made[slots] != stretch
        if stale.any():
            self._make(slots[stale], stretch[stale])
        return self._numbers[slots, place]

    def _make(self, slots: NDArray[np.int64], stretch: NDArray[np.int64]) -> None:
        positions = (stretch[:, None] * AHEAD + np.arange(AHEAD)).ravel().astype(np.uint64)
        seed, choice = self._seed[slots].repeat(AHEAD), self._choice[slots].repeat(AHEAD)
        self._numbers[slots] = uniforms(seed, choice, positions).reshape(-1, AHEAD)
        self._made[slots] = stretch
