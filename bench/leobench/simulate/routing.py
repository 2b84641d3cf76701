"""Which replica answers a request."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Protocol

from leobench.workloads import Planned

CROWDED = 1.25  # times the mean of what replicas have to do: then a request goes where less is to be done


class Router(Protocol):
    """Knows of every replica how many requests it was sent that have not ended."""

    def choose(self, planned: Planned, outstanding: Sequence[int]) -> int: ...


class RandomRouter:
    """Any replica, with equal chances."""

    def __init__(self, seed: int) -> None:
        self._draw = Random(seed)

    def choose(self, planned: Planned, outstanding: Sequence[int]) -> int:
        return self._draw.randrange(len(outstanding))


class LeastLoaded:
    """Where the fewest requests are outstanding; the first of equals after the one chosen last."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, planned: Planned, outstanding: Sequence[int]) -> int:
        count = len(outstanding)
        after = [(self._last + 1 + step) % count for step in range(count)]
        self._last = min(after, key=outstanding.__getitem__)
        return self._last


class PrefixAffine:
    """Where the request's conversation, or whatever it begins with, was sent before, so that its blocks are there.

    Rendezvous hashing, with a bound on how much more than the others a replica may have to do (Mirrokni et al., 2018,
    arXiv:1608.01350). What shares nothing goes to where the fewest requests are outstanding.
    """

    def __init__(self) -> None:
        self._rest = LeastLoaded()

    def choose(self, planned: Planned, outstanding: Sequence[int]) -> int:
        key = _key(planned)
        if key is None:
            return self._rest.choose(planned, outstanding)
        most = CROWDED * (sum(outstanding) + 1) / len(outstanding) + 1
        ranked = sorted(range(len(outstanding)), key=lambda replica: _weight(key, replica))
        return next((replica for replica in ranked if outstanding[replica] < most), ranked[0])


def _key(planned: Planned) -> str | None:
    if planned.session is not None:
        return f"session/{planned.session}"
    return planned.prefix[0][0] if planned.prefix else None


def _weight(key: str, replica: int) -> bytes:
    return blake2b(f"{replica}/{key}".encode(), digest_size=8).digest()


ROUTERS = ("prefix-affine", "least-loaded", "random")


def router(name: str, seed: int) -> Router:
    """By its name, one of ROUTERS."""
    match name:
        case "random":
            return RandomRouter(seed)
        case "least-loaded":
            return LeastLoaded()
        case _:
            return PrefixAffine()
