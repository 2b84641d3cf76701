"""The noise of sampling: Philox as published, and numbers that depend on (seed, choice, position) alone."""

from __future__ import annotations

import numpy as np
import pytest

from leoserve.model.noise import AHEAD, Noise, philox4x32, uniforms

# "philox4x32 10" of kat_vectors in the Random123 distribution: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[np.ndarray, ...]:
    return tuple(np.array([int(word, 16)], dtype=np.uint64) for word in text.split())


def numbers(seeds: list[int], choices: list[int], positions: list[int]) -> list[float]:
    seed, choice, position = (np.array(values, dtype=np.uint64) for values in (seeds, choices, positions))
    return [float(number) for number in uniforms(seed, choice, position)]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    result = philox4x32(words(counter), words(key))  # type: ignore[arg-type]
    assert " ".join(f"{int(word[0]):08x}" for word in result) == expected


def test_philox_gives_the_published_answers_side_by_side() -> None:
    counter = tuple(np.concatenate(column) for column in zip(*(words(known[0]) for known in KNOWN), strict=True))
    key = tuple(np.concatenate(column) for column in zip(*(words(known[1]) for known in KNOWN), strict=True))
    result = philox4x32(counter, key)  # type: ignore[arg-type]
    assert [" ".join(f"{int(word[row]):08x}" for word in result) for row in range(3)] == [known[2] for known in KNOWN]


def test_a_number_is_the_leading_53_bits_of_the_first_two_words() -> None:
    assert numbers([0], [0], [0])[0] == (0x6627E8D5E169C58D >> 11) / 2**53


def test_a_number_depends_on_seed_choice_and_position_alone() -> None:
    seeds, choices, positions = [7, 2**64 - 1, 7, 8, 7], [0, 0, 1, 0, 0], [5, 5, 5, 5, 2**33 + 5]
    together = numbers(seeds, choices, positions)
    alone = [numbers([s], [c], [p])[0] for s, c, p in zip(seeds, choices, positions, strict=True)]
    assert together == alone
    assert len(set(alone)) == len(alone)


def test_both_halves_of_seed_and_position_count() -> None:
    assert len(set(numbers([1, 1 + 2**32, 1, 1 + 2**63], [0] * 4, [1, 1, 1 + 2**32, 1]))) == 4


def test_numbers_are_uniform_over_positions_seeds_and_choices() -> None:
    count, bins = 40_000, 100
    steps, zeros = np.arange(count, dtype=np.uint64), np.zeros(count, dtype=np.uint64)
    for drawn in (uniforms(zeros, zeros, steps), uniforms(steps, zeros, zeros), uniforms(zeros, steps, zeros)):
        assert drawn.min() >= 0
        assert drawn.max() < 1
        observed = np.histogram(drawn, bins=bins, range=(0, 1))[0]
        chi_square = ((observed - count / bins) ** 2 / (count / bins)).sum()
        assert 55 < chi_square < 150  # 99 degrees of freedom: outside with probability below 0.001
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


def test_numbers_made_ahead_are_those_of_each_position_whatever_was_asked_before() -> None:
    noise = Noise(3)
    draw = np.random.default_rng(1)
    owners = {slot: (slot + 7, slot) for slot in range(3)}
    for slot, owner in owners.items():
        noise.set_slot(slot, *owner)
    for turn in range(200):
        if turn % 50 == 49:  # a slot gets another sequence
            owners[1] = (turn, 5)
            noise.set_slot(1, *owners[1])
        slots = draw.permutation(3)[: draw.integers(1, 4)]
        positions = draw.integers(0, 3 * AHEAD, len(slots))
        seed, choice = (np.array([owners[slot][part] for slot in slots], dtype=np.uint64) for part in (0, 1))
        expected = uniforms(seed, choice, positions.astype(np.uint64))
        assert noise.at(slots, positions).tolist() == expected.tolist()
