"""How large a tile of each kernel is, and how many warps and stages work on it.

Nothing is tuned while serving: a tile also decides in which order a row's sums are taken, and two servers of the same
version on the same GPU give the same bits. A tile is chosen by architecture, head size, how many heads share a KV head,
the size of what is cached, and whether there is a sliding window.

Chosen by compiling: no kernel needs stack memory, which would be spilled registers, on any of the architectures, nor
more shared memory than they have (99 KiB on sm_89, 163 on sm_80, 227 on sm_90 and sm_100). Nothing here was timed yet.
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


def prefill(capability: tuple[int, int], head_dim: int, sharing: int, cached_bytes: int, windowed: bool) -> Tile:
    """paged_prefill's tile, for `sharing` heads on a KV head and elements of `cached_bytes` in the cache.

    On sm_80, larger ones than these spill: keys of 8 bits are converted in registers, and a window has a loop more.
    """
    match architecture(capability), head_dim, cached_bytes, windowed:
        case "interpreter", _, _, _:
            return Tile(rows=32, keys=16, warps=4, stages=1)  # so that a few dozen tokens meet every kind of tile
        case ("sm_80", 128, 1, _) | ("sm_89", _, _, _):
            return Tile(rows=64, keys=32, warps=4, stages=2)
        case "sm_80", 128, _, True:
            return Tile(rows=128, keys=32, warps=8, stages=2)
        case _:
            return Tile(rows=128, keys=64, warps=8, stages=2)


def decode(capability: tuple[int, int], head_dim: int, sharing: int, cached_bytes: int, windowed: bool) -> Tile:
    """The tile of paged_decode, or of paged_decode_grouped where several heads share a KV head."""
    rows = 1 if sharing == 1 else max(16, 1 << (sharing - 1).bit_length())  # no tensor core multiplies fewer than 16
    if architecture(capability) == "interpreter":
        return Tile(rows, keys=32, warps=4, stages=1)
    return Tile(rows, keys=64, warps=4, stages=2)
