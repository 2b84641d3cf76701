"""What a step computes, and what it costs: all that lies between the scheduler and a model of the hardware."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from leoserve.model.step import Step


class Work(Struct, frozen=True, gc=False):  # one is made for every step
    """One step. Rows that decode compute one token each."""

    decode_rows: int
    decode_keys: int  # that these rows attend to, all together, in each layer
    prefills: tuple[tuple[int, int], ...] = ()  # (tokens that are computed, tokens before them) of every other row
    sampled: int = 0  # rows whose last token is followed by a sampled one

    @property
    def tokens(self) -> int:
        if not self.prefills:
            return self.decode_rows
        return self.decode_rows + sum(count for count, _ in self.prefills)


class Cost(Struct, frozen=True, gc=False):
    """Seconds of a step.

    The host plans, then launches; the device computes from the launch's beginning, or from the end of the step before,
    and is done no earlier than the launch.
    """

    plan: float
    launch: float
    device: float


class CostModel(Protocol):
    """How long steps take."""

    def cost(self, work: Work) -> Cost: ...


def work_of(step: Step, window: int | None, *, rows: int = 0, keys: int = 0) -> Work:
    """What a step of the server's scheduler computes, beside `rows` that decode and attend to `keys` keys.

    `window`: keys that a query sees at most, itself included.
    """
    sampled = rows
    prefills = []
    for row in step.rows:
        sampled += row.samples
        if row.decodes:
            rows += 1
            keys += row.start + 1 if window is None else min(row.start + 1, window)
        else:
            prefills.append((row.count, row.start))
    return Work(rows, keys, tuple(prefills), sampled)


def prefill_pairs(count: int, start: int, window: int | None) -> int:
    """Pairs of a query and a key that it attends to, of `count` tokens after `start` others."""
    all_pairs = count * start + count * (count + 1) // 2
    if window is None:
        return all_pairs
    beyond = start + count - window  # of the last query: the keys that it does not see
    if beyond <= 0:
        return all_pairs
    first = max(0, start + 1 - window)
    return all_pairs - (first + beyond) * (beyond - first + 1) // 2
