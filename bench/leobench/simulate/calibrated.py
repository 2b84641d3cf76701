"""What steps cost on a machine that was measured: `bench/calibrate.py` writes the file that is read here."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import msgspec
from msgspec import Struct

from leobench.simulate.work import Cost, Work, prefill_pairs

SCHEMA = "leobench-calibration/1"


class Unreadable(ValueError):
    """A file is no calibration. One line: which and why."""


class Calibration(Struct, frozen=True, kw_only=True):
    """Seconds of a step: by its tokens, linear between those that were measured, and for what else is in it.

    Of the server's engine as it runs, so that what the host does between steps is part of it.
    """

    schema: str = SCHEMA
    model: str  # the checkpoint's name
    machine: dict[str, str]  # processor, threads, versions
    engine: dict[str, int | float | bool | None]  # the bounds of its steps and sequences
    tokens: list[int]  # ascending
    seconds: list[float]  # of a step of so many tokens, beside what follows
    prompt: float  # of having rows that do not decode
    sampled: float  # of every row whose next token is sampled
    key: float  # of every key that a row that decodes attends to
    pair: float  # of every pair of a query and a key of other rows
    near: int = 0  # keys of rows that decode which the processor's caches may hold from step to step
    far: float = 0.0  # beside `key`, of every one beyond them
    request: float = 0.0  # from a request's arrival to the engine, by HTTP
    token: float = 0.0  # of each token on its way out, by HTTP
    window: int | None = None  # keys that a query sees
    fitted: list[dict[str, float]] = []  # each measured step: what it was, what it took, what is said here


def read_calibration(file: Path) -> Calibration:
    """Raises Unreadable."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Calibration)
    except (OSError, msgspec.DecodeError) as error:
        raise Unreadable(f"{file}: {error}") from error
    if found.schema != SCHEMA:
        raise Unreadable(f"{file}: its schema is {found.schema!r}, not {SCHEMA!r}")
    if not found.tokens or len(found.tokens) != len(found.seconds) or sorted(set(found.tokens)) != found.tokens:
        raise Unreadable(f"{file}: tokens and seconds are no table")
    return found


class Calibrated:
    """Steps as they were measured. The host waits for each: nothing overlaps."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    def cost(self, work: Work) -> Cost:
        own = self.calibration
        seconds = self._by_tokens(work.tokens)
        seconds += own.sampled * work.sampled + own.key * work.decode_keys
        seconds += own.far * max(0, work.decode_keys - own.near)
        if work.prefills:
            seconds += own.prompt
            seconds += own.pair * sum(prefill_pairs(count, start, own.window) for count, start in work.prefills)
        return Cost(0.0, 0.0, seconds)

    def _by_tokens(self, tokens: int) -> float:
        """On the line between the two neighbours; beyond the last on the line through the last two."""
        xs, ys = self.calibration.tokens, self.calibration.seconds
        if len(xs) == 1 or tokens <= xs[0]:
            return ys[0]
        above = min(bisect_right(xs, tokens), len(xs) - 1)
        below = above - 1
        return ys[below] + (ys[above] - ys[below]) * (tokens - xs[below]) / (xs[above] - xs[below])
