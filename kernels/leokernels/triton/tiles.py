"""How large a tile of each kernel is, and how many warps and stages work on it.

Nothing is tuned while serving: a tile also decides in which order a row's sums are taken, and two servers of the same
version on the same GPU give the same bits. A tile is chosen by architecture, head size, how many heads share a KV head,
the size of what is cached, and whether there is a sliding window.

Chosen by compiling: in no variant that is served does a kernel need more shared memory than the architectures have
(99 KiB on sm_89, 163 on sm_80, 227 on sm_90 and sm_100), nor stack memory, which would be spilled registers, whether
Triton 3.6 or 3.9 compiles it. On sm_90 also by timing, on an NVIDIA H200 with Triton 3.6; there two tiles are faster
than any that does not spill, and are said to be. Milliseconds below are of that GPU, medians, 1024 keys a row unless
they say otherwise. The other architectures' tiles were not timed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

CHUNK = 256  # keys that one program of decoding attends to at a time: the same everywhere, since it shapes the sums
DECODE_PROGRAMS = 8192  # of decoding: beyond, a program takes several chunks, for one that finds none costs time too
COMBINE_CHUNKS = 16  # partial results that decode_combine takes at a time
COMBINE_WARPS = 4
THREAD_REGISTERS = 255  # that a thread may have at most
FOUR_PROGRAMS = 128  # registers a thread: with no more, a multiprocessor runs four programs of four warps
THREE_PROGRAMS = 168
FEW_PROGRAMS = 96  # of a matrix product: fewer leave much of a GPU idle, which has about 100 to 150 multiprocessors
STEPS_A_PART = 16  # of a tile's depth in a part of a sum, at least: each part has to fill the pipeline of loads anew
FEW_ROWS = 64  # of a matrix product, up to which its tiles have no more
PRODUCT_BAND = 8  # tiles of rows that go through the weights together
ADDED_ELEMENTS = 1024  # of a product that one program adds the parts of
EARLY_ROWS = 4  # of a step, up to which its kernels start early
INTERPRETER = (0, 0)  # the capability of Triton's interpreter


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows` queries (tokens times the heads that share a KV head) by `keys`.

    Left to itself, the assembler takes fewer registers where that lets one more program on a multiprocessor, even if a
    few then spill. `registers` is how many a thread may take whatever it thinks of that.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


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

    Larger ones than these spill. Keys of 8 bits are converted in registers, and a window has a loop more: where both
    are, heads of 128 take half the keys, or on GPUs with less shared memory twice the warps. On sm_100 a warp has fewer
    registers to itself where heads of 64 share a KV head. With 8 bits or a window the assembler would also spill by its
    own choice, to get down to 128 registers a thread.

    On sm_90 four warps are faster than eight, although heads of 128 then spill 136 to 224 bytes a thread in 16 bits
    without a window: 0.401 ms against 0.549 for 4 prompts of 2048 tokens of 7B, 2.106 against 3.141 after 6144 cached
    ones, and for 8192 tokens of 70B, with a stage more, 2.295 against 3.195 (PyTorch's FlashAttention-2: 0.485, 2.786,
    3.247). With 8 bits or a window they would spill up to 416, and heads of 64 would spill too; those were not timed,
    and keep eight.
    """
    registers = None if cached_bytes == 2 and not windowed else THREAD_REGISTERS
    match architecture(capability), head_dim, cached_bytes, windowed:
        case "interpreter", _, _, _:
            return Tile(rows=32, keys=16, warps=4, stages=1)  # so that a few dozen tokens meet every kind of tile
        case "sm_80" | "sm_89", 128, 1, True:
            return Tile(rows=64, keys=32, warps=8, stages=2, registers=registers)
        case ("sm_80", 128, 1, _) | ("sm_80", 128, _, True) | ("sm_89", _, _, _):
            return Tile(rows=64, keys=32, warps=4, stages=2, registers=registers)
        case "sm_100", 64, _, _ if sharing > 1:
            return Tile(rows=128, keys=32, warps=8, stages=2, registers=registers)
        case _, 128, 1, True:
            return Tile(rows=128, keys=32, warps=8, stages=2, registers=registers)
        case "sm_90", 128, 2, False:
            return Tile(rows=128, keys=64, warps=4, stages=2, registers=registers)
        case _:
            return Tile(rows=128, keys=64, warps=8, stages=2, registers=registers)


def decode(capability: tuple[int, int], head_dim: int, sharing: int, cached_bytes: int, windowed: bool) -> Tile:
    """The tile of paged_decode, or of paged_decode_grouped where several heads share a KV head.

    64 keys are its own block size (see table.TABLE), so that one entry of the block table serves a tile. Heads of 128
    in 16 bits leave registers to spare. Of the others some spill at the assembler's choice, down to 72 a thread. And of
    a group's 8-bit keys, what is stored, what it is converted to, and how the product wants it are in registers at
    once: 64 keys of 128 spill even at 168 registers, 32 keys at 128.
    """
    rows = 1 if sharing == 1 else max(16, 1 << (sharing - 1).bit_length())  # no tensor core multiplies fewer than 16
    if architecture(capability) == "interpreter":
        return Tile(rows, keys=32, warps=4, stages=1)
    if architecture(capability) == "sm_90" and head_dim == 128:
        return _decode_128_on_sm_90(rows, cached_bytes)
    if sharing > 1 and cached_bytes == 1:
        return Tile(rows, keys=32, warps=4, stages=2, registers=THREE_PROGRAMS)
    registers = None if head_dim == 128 and cached_bytes == 2 else FOUR_PROGRAMS
    if sharing > 1:
        return Tile(rows, keys=64, warps=4, stages=2, registers=registers)
    return Tile(rows, keys=64, warps=4, stages=1, registers=registers)


def _decode_128_on_sm_90(rows: int, cached_bytes: int) -> Tile:
    """What was timed, for heads of 128 alone (`rows` 1) and in groups; at batch 64 where nothing else is said.

    Alone in 8 bits 0.195 ms for int8, against 0.291 with the other architectures' 64 keys by 4 warps, and 0.174 against
    0.256 for float8. In 16 bits 0.259, as long as with 64 keys by 2 warps, which take 0.0156 against 0.0121 at batch 1.

    Groups of 8, as 70B's: in 16 bits 0.0876 ms against 0.0874 with 64 keys, but 0.0091 against 0.0106 at batch 1; int8
    0.0774 against 0.1117 with 32 keys (0.0105 and 0.0166 at batch 1), float8 0.0833 against 0.1185 (0.0116 and 0.0180).
    int8 spills up to 24 bytes a thread, by the assembler's choice for a third program on a multiprocessor, as it was
    timed. In 16 bits the assembler is kept from spilling down to 96 registers.
    """
    if rows > 1:
        return Tile(rows, keys=128, warps=4, stages=2, registers=THREE_PROGRAMS if cached_bytes == 2 else None)
    if cached_bytes == 1:
        return Tile(rows, keys=128, warps=2, stages=1, registers=THREE_PROGRAMS)
    return Tile(rows, keys=128, warps=4, stages=1)


def early(capability: tuple[int, int], rows: int) -> bool:
    """Whether the kernels of a step of so many rows start before those before them have ended: see jit.early_options.

    7B's step on an H200, with narrow_kernel as its product and 1024 keys, early against not: 4.05 ms against 4.22 for 1
    row, 4.20 against 4.36 for 2, 4.59 against 4.61 for 4, but 5.25 against 5.17 for 8.
    """
    return architecture(capability) == "sm_90" and rows <= EARLY_ROWS


@dataclass(frozen=True, slots=True)
class NarrowTile:
    """`rows` of x by `columns` by `depth`; of each weight's row the first `ahead` elements are asked for early."""

    rows: int
    columns: int
    depth: int
    ahead: int
    warps: int
    stages: int


# narrow_kernel's, on sm_90, where alone it is used: a program is one warp that takes 16 columns. 7B's whole step on an
# H200: 4.05 ms for 1 row and 5.17 for 8, where the library's product has 4.30 and 5.40. Cutting K into parts is faster
# for the two products of few columns alone (down 24.9 us against 29.8), and slower in the step, to which it adds a
# kernel each time: 4.28 ms for 1 row and 5.53 for 8, between tokens of the engine.
NARROW = NarrowTile(rows=8, columns=16, depth=256, ahead=1024, warps=1, stages=6)


@dataclass(frozen=True, slots=True)
class ProductTile:
    """`rows` of x by `columns`, which are rows of the weight, `depth` of what is summed over at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def product(capability: tuple[int, int], rows: int) -> ProductTile:
    """linear_kernel's tile for `rows` rows. Columns and depth are those of any number of rows.

    Each 64 rows have 4 warps, as a warp group's instruction on sm_90 takes them, which is also that of fewer rows: what
    a warp does is the same in both tiles. On sm_100, where one instruction multiplies a tile of whatever height, there
    is one height only. 128 columns by a depth of 64 are 16 KiB of weights a stage: two stages under way on each of 132
    multiprocessors are what a memory of 4.3 TB/s delivers in a microsecond. Stages on sm_90, and of few rows
    elsewhere, leave shared memory for two programs on a multiprocessor: one multiplies while the other begins or ends.
    """
    match architecture(capability):
        case "interpreter":
            return ProductTile(rows=16, columns=32, depth=16, warps=4, stages=1)  # small, as are the tests' products
        case "sm_100":
            return ProductTile(rows=128, columns=128, depth=64, warps=8, stages=4)
        case "sm_90":
            few, many = 4, 3
        case "sm_80":
            few, many = 4, 4
        case _:
            few, many = 3, 4
    if rows <= FEW_ROWS:
        return ProductTile(rows=FEW_ROWS, columns=128, depth=64, warps=4, stages=few)
    return ProductTile(rows=128, columns=128, depth=64, warps=8, stages=many)


def product_parts(tile: ProductTile, columns: int, depth: int) -> int:
    """Parts that a sum over `depth` is taken in, for a weight of `columns` rows.

    As many as it takes that a single row gives work to FEW_PROGRAMS, but none of fewer than STEPS_A_PART steps. They
    shape the sums, so they depend on the weight alone.
    """
    column_tiles, steps = -(-columns // tile.columns), -(-depth // tile.depth)
    parts = 1
    while column_tiles * parts < FEW_PROGRAMS and steps >= 2 * parts * STEPS_A_PART:
        parts *= 2
    return parts
