"""Rows in which every value of every field meets every value of every other field at least once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

Choice = tuple[str, int]  # a field and which of its values


def all_pairs(fields: Mapping[str, Sequence[Any]], *, seed: int = 0) -> list[dict[str, Any]]:
    """Few rows that cover all pairs, found greedily; equal for equal arguments."""
    order = random.Random(seed)
    missing = {
        frozenset({(one, i), (other, j)})
        for one, other in itertools.combinations(fields, 2)
        for i in range(len(fields[one]))
        for j in range(len(fields[other]))
    }
    rows = []
    while missing:
        row: list[Choice] = sorted(min(missing, key=sorted))
        rest = [name for name in fields if name not in dict(row)]
        order.shuffle(rest)
        for name in rest:
            values = [(name, number) for number in range(len(fields[name]))]
            order.shuffle(values)
            row.append(max(values, key=lambda value: sum(frozenset({value, other}) in missing for other in row)))
        missing -= {frozenset(pair) for pair in itertools.combinations(row, 2)}
        rows.append({name: fields[name][number] for name, number in row})
    return rows
