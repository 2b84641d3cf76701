"""Where packed weights lie: one after the other in large pages.

A step reads each weight once. In pages of 4 KiB that is a fifth slower than in those of 2 MiB (measured: 26 and 34
GB/s, two threads), for the processor looks up the place of so many more; and an allocator gives large pages to large
pieces alone, and none to what is left of them beyond a multiple of 2 MiB.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

SLAB_BYTES = 64 << 20  # that the system is asked for at once; what is never written costs nothing
LARGE_PAGE = 2 << 20
LINE = 64  # bytes: where a weight may begin


class Slabs:
    """Gives out pieces of memory. They are given back together, when none of those in a slab is used any more."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)  # of the newest slab

    def take(self, size: int) -> Tensor:
        """`size` bytes [size] uint8, from a multiple of LINE on, not initialized."""
        whole = -(-size // LINE) * LINE
        if whole > len(self._rest):
            self._rest = slab(max(SLAB_BYTES, whole))
        taken, self._rest = self._rest[:size], self._rest[whole:]
        return taken


def slab(size: int) -> Tensor:
    """Memory of at least `size` bytes from a multiple of LARGE_PAGE on, in large pages where the system has them.

    Raises torch.OutOfMemoryError.
    """
    whole = -(-size // LARGE_PAGE) * LARGE_PAGE
    try:
        mapped = mmap.mmap(-1, whole + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise torch.OutOfMemoryError(f"the system has no {whole >> 20} MiB for weights ({error.strerror})") from error
    with contextlib.suppress(OSError):  # a kernel that is built without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(mapped, dtype=torch.uint8)
    return tensor[-tensor.data_ptr() % LARGE_PAGE :][:whole]
