"""Stages 5 and 6: the engine in this process. Time per token, prompts, overlap, where the time goes; 13B; 8 bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch

from gpustages.idle import idle_by_events, profile
from gpustages.network import Engine, Sizes, engine, random_network, release, weight_bytes
from gpustages.place import Place
from gpustages.shapes import SEVEN, THIRTEEN, TINY, Shape
from gpustages.stages import Measurement
from gpustages.timing import summary
from leoserve.model.llama import Llama

CONTEXT = 1024  # tokens of a sequence in the middle of its answer
ANSWER = 65
LONGEST = 8192


def measure_7b(place: Place) -> Iterator[Measurement]:
    """Overlapped and recorded first, as it is served; then each of them off; then prompts and a profile."""
    shape = TINY if place.tiny else SEVEN
    model = random_network(place, shape)
    batches = (2,) if place.tiny else (1, 8, 64)
    with engine(place, model, sizes(place, batches[-1])) as made:
        made.generate(*request(place, min(8, batches[-1])), ahead=1)  # compiles
        for batch in batches:
            yield time_per_token(place, shape, model, made, batch, ahead=1)
        for batch in batches:
            yield time_per_token(place, shape, model, made, batch, ahead=0, note=", without overlap")
        yield from prompts(place, shape, made)
        ends = sorted({batches[0], batches[-1]})
        for batch in ends:
            yield idle_by_events(place, shape, made, request(place, batch))
            yield from profile(place, shape, made, request(place, batch))
        made.runner._graphs = None
        for batch in ends:
            yield time_per_token(place, shape, model, made, batch, ahead=1, note=", without graphs")


def measure_larger(place: Place) -> Iterator[Measurement]:
    """13B first, then both with caches of 8 bits, at batches that 16 bits leave no room for."""
    shapes = (TINY,) if place.tiny else (THIRTEEN, SEVEN)
    for shape in shapes:
        if shape is not SEVEN:
            yield from _cache_of(place, shape, None, (2,) if place.tiny else (1, 8, 64))
        for kv_dtype in reversed(place.eight_bit):
            yield from _cache_of(place, shape, kv_dtype, (2,) if place.tiny else (1, 128))
    if importlib.util.find_spec("leoserve.model.quantized") is None:
        yield {"name": "weights of 8 and 4 bits", "note": "not measured: this version serves none"}


def _cache_of(
    place: Place, shape: Shape, kv_dtype: torch.dtype | None, batches: tuple[int, ...]
) -> Iterator[Measurement]:
    kind = "" if kv_dtype is None else f", cache of {str(kv_dtype).removeprefix('torch.')}"
    model = random_network(place, shape, kv_dtype)
    with engine(place, model, sizes(place, batches[-1])) as made:
        made.generate(*request(place, min(8, batches[-1])), ahead=1)  # compiles
        for batch in batches:
            yield time_per_token(place, shape, model, made, batch, ahead=1, note=kind)
        if kv_dtype is None:
            yield from prompts(place, shape, made)
    del model
    release(place)


def sizes(place: Place, batch: int) -> Sizes:
    """Room for `batch` sequences of a little more than CONTEXT tokens, and for one of the longest."""
    if place.tiny:
        return Sizes(batch, 32, 32, 16, batch)
    block = 64
    needed = batch * -(-(CONTEXT + ANSWER + block) // block) * block
    return Sizes(batch, LONGEST, LONGEST, block, max(1, -(-needed // LONGEST)))


def request(place: Place, batch: int) -> tuple[int, int, int]:
    """Sequences, tokens of each prompt, tokens of each answer."""
    return (batch, 5, 4) if place.tiny else (batch, CONTEXT - ANSWER // 2, ANSWER)


def time_per_token(
    place: Place, shape: Shape, model: Llama, made: Engine, batch: int, *, ahead: int, note: str = ""
) -> Measurement:
    """Between outputs, while all sequences generate; the ceiling is weights and cache at copy bandwidth."""
    made.generate(*request(place, batch), ahead=ahead)
    name = f"{shape.name} decode, B{batch}{note}"
    gaps = made.gaps(batch)
    if not gaps:
        return {"name": name, "note": "not measured: no two steps had all sequences in them"}
    timing = summary(gaps, "engine")
    _, prompt, answer = request(place, batch)
    moved = weight_bytes(model) + batch * (prompt + answer // 2) * shape.kv_bytes(model.kv_dtype.itemsize)
    return {
        "name": name,
        "tokens_s": batch / timing.ms * 1e3,
        "ceiling_tokens_s": batch * place.bytes_a_second / moved,
        **timing.entry(),
    }


def prompts(
    place: Place,
    shape: Shape,
    made: Engine,
    *,
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8000),
    note: str = "",
) -> Iterator[Measurement]:
    """From a request to its first token."""
    for length in (9,) if place.tiny else lengths:
        times = [made.generate(1, length, 1, ahead=1) * 1e3 for _ in range(2 if place.tiny else 6)]
        timing = summary(times[1:], "engine")
        pairs = length * (length + 1) // 2
        operations = 2 * shape.product_weights * length + 4 * pairs * shape.heads * shape.head_dim * shape.layers
        yield {
            "name": f"{shape.name} prompt of {length}{note} ({length / timing.ms * 1e3:.0f} tok/s)",
            "tflop_s": operations / timing.ms / 1e9,
            **timing.entry(),
        }
