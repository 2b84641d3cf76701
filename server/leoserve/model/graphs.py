"""Decode steps as CUDA graphs: what the host would launch kernel by kernel is launched as one.

A graph is a recording of one batch size. A step takes the next larger size that was recorded; the rows it has too many
are padding, of slot -1 and position -1. The largest is recorded first, so that all others fit into its memory pool.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

# Up to 8 rows each doubling pays; from there on a step is a little longer with every row.
SIZES = (1, 2, 4, *range(8, 257, 8))
PADDING = -1

# The body of a decode step: slots and positions [P] int32 -> logits [P, vocab_size] float32
Decode = Callable[[Tensor, Tensor], Tensor]


class Recorder(Protocol):
    """Records what `body` launches and returns what launches it again; called for the largest size first."""

    def __call__(self, body: Callable[[], None]) -> Callable[[], object]: ...


class CudaRecorder:
    """Records CUDA graphs into one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, body: Callable[[], None]) -> Callable[[], object]:
        body()  # compiles kernels and fills caches, which a recording must not
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            body()
        return graph.replay


class DecodeGraphs:
    """Recordings of one decode function for every size up to `largest`."""

    def __init__(
        self, decode: Decode, *, largest: int, vocab_size: int, device: torch.device, recorder: Recorder
    ) -> None:
        self.sizes = graph_sizes(largest)
        self._inputs = torch.full((2 * self.sizes[-1],), PADDING, dtype=torch.int32, device=device)
        self._logits = torch.empty(self.sizes[-1], vocab_size, dtype=torch.float32, device=device)
        self._replays = {size: recorder(self._body(decode, size)) for size in reversed(self.sizes)}

    def _body(self, decode: Decode, size: int) -> Callable[[], None]:
        slots, positions = self._inputs_of(size)

        def body() -> None:
            self._logits[:size].copy_(decode(slots, positions))

        return body

    def _inputs_of(self, size: int) -> Tensor:
        """[2, size], without a gap: an upload is one copy."""
        return self._inputs[: 2 * size].view(2, size)

    def size_for(self, rows: int) -> int | None:
        """The smallest recorded size that holds so many rows; None if there is none."""
        place = bisect_left(self.sizes, rows)
        return self.sizes[place] if place < len(self.sizes) else None

    def replay(self, inputs: Tensor, size: int) -> Tensor:
        """Compute `inputs` [2, size] int32 (slots, positions; padded): logits [size, vocab_size] float32.

        They are overwritten by the next replay.
        """
        self._inputs_of(size).copy_(inputs, non_blocking=True)
        self._replays[size]()
        return self._logits[:size]


def graph_sizes(largest: int) -> Sequence[int]:
    """The batch sizes to record so that every step of up to `largest` rows has one, 256 at most."""
    within = [size for size in SIZES if size < largest]
    return [*within, min(largest, SIZES[-1])]
