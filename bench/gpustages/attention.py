"""Stage 3: attention alone. Decode in bytes a second, prompts in operations a second, beside PyTorch's own.

PyTorch's FlashAttention-2 is measured over keys and values that lie together, sequence by sequence: without pages, as
it is meant to be used, so that it is a bar and not a strawman. It has two entries, which split their work differently:
scaled_dot_product_attention and varlen_attn. Over pages too, where this PyTorch can, which is said.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpustages.paged import Heads, Problem, filled
from gpustages.place import Place
from gpustages.shapes import SEVEN, SEVENTY, TINY, Shape
from gpustages.small import between_products, choosing
from gpustages.stages import Measurement, brief
from gpustages.warming import warm
from leokernels import varlen
from leokernels.table import dtype_name
from leokernels.triton import tiles
from leokernels.triton.tiles import Tile

COLD_BYTES = 256 << 20  # of layers that follow each other, so that no cache holds one until its next turn
Row = tuple[int, int]

DECODE_TILES = tuple(
    Tile(1, keys, warps, stages) for keys in (32, 64, 128) for warps, stages in ((2, 1), (4, 1), (4, 3), (8, 1))
)
PREFILL_TILES = (
    Tile(128, 64, 8, 2),
    Tile(128, 64, 8, 3),
    Tile(128, 64, 4, 3),
    Tile(128, 128, 8, 2),
    Tile(128, 128, 8, 3),
    Tile(64, 64, 4, 3),
    Tile(64, 128, 4, 3),
    Tile(128, 32, 8, 4),
)


def measure(place: Place) -> Iterator[Measurement]:
    """What decides first: 7B's decode and prompts. Then grouped queries, 8 bits, small kernels, other tiles."""
    seven, seventy = (TINY, TINY) if place.tiny else (SEVEN, SEVENTY)
    for batch in (2,) if place.tiny else (1, 8, 64, 224):
        yield from decode(place, seven, batch, 20 if place.tiny else 1024, rivals=True)
    for rows in prompts(place):
        yield from prefill(place, seven, rows)
    for kv_dtype in place.eight_bit:
        for batch in (2,) if place.tiny else (1, 64):
            yield from decode(place, seven, batch, 20 if place.tiny else 1024, kv_dtype=kv_dtype)
    if not place.tiny:
        for batch, context in ((1, 8192), (8, 8192), (64, 4096)):
            yield from decode(place, seven, batch, context)
        for batch in (1, 64, 224):
            yield from decode(place, seventy, batch, 1024, rivals=True)
        yield from prefill(place, seventy, [(0, 8192)])
    yield from between_products(place, seven)
    yield from choosing(place, seven)
    yield from other_tiles(place, seven)


def prompts(place: Place) -> list[list[Row]]:
    """8192 tokens as prompts of 512, 2k and 8k, without and with a prefix that is cached."""
    if place.tiny:
        return [[(0, 9), (0, 9)], [(20, 5)]]
    return [[(0, 512)] * 16, [(0, 2048)] * 4, [(0, 8192)], [(1536, 512)] * 16, [(6144, 2048)] * 4, [(7680, 512)]]


def decode(
    place: Place,
    shape: Shape,
    batch: int,
    context: int,
    *,
    kv_dtype: torch.dtype | None = None,
    rivals: bool = False,
    note: str = "",
) -> Iterator[Measurement]:
    """One token of each of `batch` sequences."""
    problem = problem_of(place, shape, [(context - 1, 1)] * batch, kv_dtype)
    title = f"decode {shape.name} B{batch}, {context} keys{_kind(kv_dtype)}"
    yield _entry(f"{title}{note}", place, problem, "gb_s", _ours(problem))
    if not rivals:
        return
    layers = [_together(problem, layer) for layer in range(len(problem.caches))]
    yield from _rival(place, problem, "gb_s", f"{title}: PyTorch SDPA (flash)", lambda: _sdpa(problem, layers))
    yield from _rival(place, problem, "gb_s", f"{title}: PyTorch varlen", lambda: _varlen(problem, layers))
    yield from _paged(place, problem, shape, f"{title}: PyTorch varlen (paged)")


def _paged(place: Place, problem: Problem, shape: Shape, title: str) -> Iterator[Measurement]:
    """PyTorch's FlashAttention-2 over pages as large as it wants them; or what is compared instead."""
    obstacle = varlen.missing() or (None if place.device.type == "cuda" else "it runs on cuda")
    if obstacle is not None:
        yield {"name": title, "note": f"not there ({obstacle}): its entries over keys that lie together are compared"}
        return

    def calls() -> list[Callable[[], object]]:
        paged = problem_of(place, shape, problem.rows, None, block_size=256)
        return [_attend(paged, layer, "torch_varlen") for layer in range(len(paged.caches))]

    yield from _rival(place, problem, "gb_s", title, calls)


def prefill(place: Place, shape: Shape, rows: list[Row], note: str = "") -> Iterator[Measurement]:
    """Prompts, or what is left of them after a cached prefix."""
    problem = problem_of(place, shape, rows, None, layers=1)
    start, count = rows[0]
    title = f"prefill {shape.name} {len(rows)} × {count}" + (f" after {start}" if start else "")
    yield _entry(f"{title}{note}", place, problem, "tflop_s", _ours(problem))
    if note:
        return
    layers = [_together(problem, 0)]
    if not start:
        yield from _rival(place, problem, "tflop_s", f"{title}: PyTorch SDPA (flash)", lambda: _sdpa(problem, layers))
    yield from _rival(place, problem, "tflop_s", f"{title}: PyTorch varlen", lambda: _varlen(problem, layers))


def problem_of(
    place: Place,
    shape: Shape,
    rows: list[Row],
    kv_dtype: torch.dtype | None,
    *,
    layers: int | None = None,
    block_size: int = 64,
) -> Problem:
    of = Heads(shape.heads, shape.kv_heads, shape.head_dim)
    itemsize = (kv_dtype or place.dtype).itemsize
    layer_bytes = sum(start + count for start, count in rows) * shape.kv_heads * shape.head_dim * itemsize * 2
    enough = 1 if place.tiny else max(1, min(shape.layers, -(-COLD_BYTES // layer_bytes)))
    return filled(
        rows,
        of,
        block_size=16 if place.tiny else block_size,
        dtype=place.dtype,
        kv_dtype=kv_dtype,
        device=place.device,
        layers=layers or enough,
    )


def _kind(kv_dtype: torch.dtype | None) -> str:
    return "" if kv_dtype is None else f", {dtype_name(kv_dtype)}"


def _ours(problem: Problem) -> list[Callable[[], object]]:
    return [_attend(problem, layer, "triton") for layer in range(len(problem.caches))]


def _attend(problem: Problem, layer: int, implementation: str) -> Callable[[], object]:
    out = torch.empty_like(problem.query)
    return lambda: problem.attend(implementation, layer=layer, out=out)


def _entry(name: str, place: Place, problem: Problem, unit: str, calls: list[Callable[[], object]]) -> Measurement:
    timing = place.stopwatch.measure(*calls)
    rate = problem.bytes_read / timing.ms / 1e6 if unit == "gb_s" else problem.operations / timing.ms / 1e9
    return {"name": name, unit: rate, **timing.entry()}


def _rival(
    place: Place, problem: Problem, unit: str, name: str, make: Callable[[], list[Callable[[], object]]]
) -> Iterator[Measurement]:
    """What another library reaches, or why it does not run: neither is a failure of ours."""
    try:
        entry = _entry(name, place, problem, unit, make())
    except Exception as error:
        entry = {"name": name, "note": f"did not run: {brief(error)}"}
    yield entry


def _together(problem: Problem, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values [rows, context, kv_heads, head_dim] of rows that are all of one length, without pages."""
    cache, table = problem.caches[layer], problem.metadata.block_table
    context = problem.metadata.max_context
    blocks = table[:, : -(-context // problem.block_size)].long()
    keys, values = (part[blocks].flatten(1, 2)[:, :context].contiguous() for part in (cache.keys, cache.values))
    return keys, values


def _sdpa(problem: Problem, layers: list[tuple[Tensor, Tensor]]) -> list[Callable[[], object]]:
    """scaled_dot_product_attention; on a GPU by FlashAttention only."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    count = problem.rows[0][1]
    query = problem.query.view(len(problem.rows), count, *problem.query.shape[1:]).transpose(1, 2)
    grouped = problem.of.heads != problem.of.kv_heads
    backend = SDPBackend.FLASH_ATTENTION if query.is_cuda else SDPBackend.MATH

    def call(keys: Tensor, values: Tensor) -> Callable[[], object]:
        def attend() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    query, keys.transpose(1, 2), values.transpose(1, 2), is_causal=count > 1, enable_gqa=grouped
                )

        return attend

    return [call(keys, values) for keys, values in layers]


def _varlen(problem: Problem, layers: list[tuple[Tensor, Tensor]]) -> list[Callable[[], object]]:
    """varlen_attn, whose spelling of causality changed between versions."""
    function: Any = importlib.import_module(varlen.MODULE).varlen_attn
    known = inspect.signature(function).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        causal["enable_gqa"] = problem.of.heads != problem.of.kv_heads
    metadata = problem.metadata
    contexts = metadata.context_len.cumsum(0).int()
    key_start = F.pad(contexts, (1, 0))

    def call(keys: Tensor, values: Tensor) -> Callable[[], object]:
        return lambda: function(
            problem.query,
            keys.flatten(0, 1),
            values.flatten(0, 1),
            metadata.query_start,
            key_start,
            metadata.max_query,
            metadata.max_context,
            **causal,
        )

    return [call(keys, values) for keys, values in layers]


def other_tiles(place: Place, shape: Shape) -> Iterator[Measurement]:
    """The same attention with other tiles than the table's, for the table's sake: what spills or fails is noted."""
    yield {"name": "compiling other tiles", "note": f"{warm(place, _tile_calls, seconds=place.seconds_left / 2):.0f} s"}
    context = 20 if place.tiny else 1024
    for tile in DECODE_TILES[:1] if place.tiny else DECODE_TILES:
        with patched("decode", tile):
            for batch in (2,) if place.tiny else (1, 64):
                yield from _tried(decode, tile, place, shape, batch, context)
    for tile in PREFILL_TILES[:1] if place.tiny else PREFILL_TILES:
        with patched("prefill", tile):
            yield from _tried(prefill, tile, place, shape, prompts(place)[-1 if place.tiny else 1])


def _tile_calls(place: Place) -> Iterator[Callable[[], object]]:
    """Attention once with each of the tiles, over little."""

    def call(kernel: str, tile: Tile, rows: list[Row]) -> None:
        with patched(kernel, tile):
            problem_of(place, SEVEN, rows, None, layers=1).attend("triton")

    for tile in DECODE_TILES:
        yield partial(call, "decode", tile, [(63, 1)])
    for tile in PREFILL_TILES:
        yield partial(call, "prefill", tile, [(0, 64)])


def _tried(what: Callable[..., Iterator[Measurement]], tile: Tile, *arguments: Any) -> Iterator[Measurement]:
    note = f", tile {tile.rows}×{tile.keys}, {tile.warps} warps, {tile.stages} stages"
    try:
        yield from what(*arguments, note=note)
    except Exception as error:  # too much shared memory, say
        yield {"name": f"{what.__name__}{note}", "note": brief(error)}


@contextmanager
def patched(kernel: str, tile: object) -> Iterator[None]:
    """What one of the tables has, whatever it is asked for."""
    usual = getattr(tiles, kernel)
    setattr(tiles, kernel, lambda *_: tile)
    try:
        yield
    finally:
        setattr(tiles, kernel, usual)
