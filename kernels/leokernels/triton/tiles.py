"""How large a tile of each kernel is, and how many warps and stages work on it: one table, filled by measurement.

Nothing is tuned while serving: a tile also decides in which order a row's sums are taken, and two servers of the same
version on the same GPU give the same bits. What a table's row is chosen for: the architecture, the head size, whether
heads share a KV head, and the size of what is cached.

Measured by compiling: on every row's architecture no kernel needs stack memory, which would be spilled registers, and
none more shared memory than the architecture has (99 KiB on sm_89, 163 on sm_80, 227 on sm_90 and sm_100).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

CHUNK = 256  # keys that one program of decoding attends to at a time: the same everywhere, since it shapes the sums
DECODE_PROGRAMS = 8192  # of decoding: beyond, a program takes several chunks, for one that finds none costs time too
COMBINE_CHUNKS = 16  # partial results that decode_combine takes at a time
COMBINE_WARPS = 4
INTERPRETER = (0, 0)  # the capability of Triton's interpreter


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows` queries (tokens times the heads that share a KV head) by `keys`."""

    rows: int
    keys: int
    warps: int
    stages: int


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """A GPU's compute capability; any other device is the interpreter's."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else INTERPRETER


def architecture(capability: tuple[int, int]) -> str:
    """The row of the tables for a GPU: what differs is shared memory and how matrix products are done."""
    if capability == INTERPRETER:
        return "interpreter"
    if capability[0] == 9:
        return "sm_90"
    if capability[0] in (10, 11):
        return "sm_100"
    return "sm_80" if capability in ((8, 0), (8, 7)) else "sm_89"  # the others have less shared memory


# The interpreter's tiles are small, so that a few dozen tokens meet every kind of them.
_PREFILL = {
    "interpreter": Tile(rows=32, keys=16, warps=4, stages=1),
    "sm_80": Tile(rows=128, keys=64, warps=8, stages=2),
    "sm_89": Tile(rows=64, keys=32, warps=4, stages=2),
    "sm_90": Tile(rows=128, keys=64, warps=8, stages=2),
    "sm_100": Tile(rows=128, keys=64, warps=8, stages=2),
}


def prefill(capability: tuple[int, int], head_dim: int, sharing: int, cached_bytes: int) -> Tile:
    """paged_prefill's tile."""
    return _PREFILL[architecture(capability)]


def decode(capability: tuple[int, int], head_dim: int, sharing: int, cached_bytes: int) -> Tile:
    """The tile of paged_decode, or of paged_decode_grouped for several heads (`sharing`) on a KV head."""
    rows = 1 if sharing == 1 else max(16, 1 << (sharing - 1).bit_length())
    if architecture(capability) == "interpreter":
        return Tile(rows, 32, 4, 1)
    return Tile(rows, 64, 4, 2)
