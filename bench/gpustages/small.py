"""Kernels of a few microseconds: what a layer does between its products, and the choice of tokens.

Each is called over many different buffers in one recording, so that a call's own time remains and not a launch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import torch

from gpustages.place import Place
from gpustages.shapes import Shape
from gpustages.stages import Measurement
from gpustages.timing import FEW
from leokernels import fused as plain
from leokernels import new_cache
from leokernels.triton import fused
from leokernels.triton.logits import process_logits
from leokernels.triton.sampling import sample
from leokernels.triton.state import SamplingState, SlotSettings

Calls = list[Callable[[], object]]
BLOCK = 64
ENOUGH_BYTES = 1 << 30  # of a kernel's buffers: those of so many take longer than any launch


def copies(place: Place, size: int) -> int:
    """How many buffers of `size` bytes to go through."""
    return 2 if place.tiny else max(2, min(FEW, ENOUGH_BYTES // size))


def between_products(place: Place, shape: Shape) -> Iterator[Measurement]:
    """Norm, rotary positions and gate, ours and plain torch's, over batches of decoding and of a prompt."""
    for rows in (2,) if place.tiny else (1, 64, 8192):
        for name, module in (("ours", fused), ("torch", plain)):
            for what, elements, make in _between(place, shape, rows, module):
                size = elements * place.dtype.itemsize
                timing = place.stopwatch.measure(*make(copies(place, size)))
                yield {"name": f"{what} of {rows} rows, {name}", "gb_s": size / timing.ms / 1e6, **timing.entry()}


def _between(
    place: Place, shape: Shape, rows: int, module: ModuleType
) -> Iterator[tuple[str, int, Callable[[int], Calls]]]:
    """What is called, how many numbers it reads and writes at the least, and what makes calls over other buffers."""
    heads, hidden = shape.heads + 2 * shape.kv_heads, shape.hidden
    weight = torch.ones(hidden, dtype=place.dtype, device=place.device)
    angles = torch.rand(rows, 2, 1, shape.head_dim // 2, device=place.device)
    slots = torch.arange(rows, device=place.device)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, device=place.device, dtype=place.dtype)

    def norm() -> Callable[[], object]:
        x, residual = random(rows, hidden), random(rows, hidden)
        return lambda: module.rms_norm(x, weight, 1e-5, residual)

    def gate() -> Callable[[], object]:
        gates = random(rows, 2 * shape.inner)
        return lambda: module.silu_and_mul(gates)

    def rope() -> Callable[[], object]:
        qkv = random(rows, heads, shape.head_dim)
        cache = new_cache(
            -(-rows // BLOCK),
            BLOCK,
            shape.kv_heads,
            shape.head_dim,
            dtype=place.dtype,
            device=place.device,
            implementation="triton",
        )
        return lambda: module.rope_and_cache(qkv, angles, cache, slots, shape.heads, shape.kv_heads)

    for what, elements, make in (
        ("norm", 4 * rows * hidden, norm),
        ("gate", 3 * rows * shape.inner, gate),
        ("rotary positions", 2 * rows * heads * shape.head_dim, rope),
    ):
        yield what, elements, partial(_several, make)


def _several(make: Callable[[], Callable[[], object]], count: int) -> Calls:
    return [make() for _ in range(count)]


def choosing(place: Place, shape: Shape) -> Iterator[Measurement]:
    """From logits to tokens: greedy, plain sampling, and with top_k and top_p."""
    settings = {
        "greedy": SlotSettings(temperature=0.0),
        "temperature": SlotSettings(temperature=0.8),
        "top_k and top_p": SlotSettings(temperature=0.8, top_k=50, top_p=0.9),
        "penalties": SlotSettings(temperature=0.8, repetition=1.1, frequency=0.1),
    }
    for rows in (2,) if place.tiny else (1, 64, 224):
        count = copies(place, rows * shape.vocab * 4)
        for name, setting in list(settings.items())[-2 if place.tiny else 0 :]:
            timing = place.stopwatch.measure(*_choices(place, shape.vocab, rows, setting, count))
            yield {"name": f"choosing {rows} tokens, {name}", **timing.entry()}


def _choices(place: Place, vocab: int, rows: int, setting: SlotSettings, count: int) -> Calls:
    """Over different logits of the same slots."""
    slots = torch.arange(rows, dtype=torch.int32, device=place.device)
    positions = torch.arange(rows, device=place.device)
    state = SamplingState.empty(rows, vocab, (), place.device)
    for slot in range(rows):
        state.set_slot(slot, setting, [1, 2, 3], [4, 5])

    def choice() -> Callable[[], object]:
        logits = torch.randn(rows, vocab, device=place.device) * 3
        return lambda: sample(process_logits(logits, slots, state), slots, positions, state)

    return _several(choice, count)
