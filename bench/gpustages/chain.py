"""Stage 7: a decoding step as the sequence of kernels that it is, and the tiles that its time hangs on.

7B's layers follow each other in one recording, over different weights, with the library's products and with ours for
few rows, and with kernels that start before the ones before them have ended. Then attention alone: tiles for caches of
8 and of 16 bits, for heads that share keys, and for prompts. Each variant is checked before it is timed: products
against float32, attention against the reference, a step that starts early against the same one that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gpustages.attention import decode, patched, prefill, problem_of, prompts
from gpustages.network import multiply_by, random_network, release, weight_bytes
from gpustages.paged import Heads, written
from gpustages.place import Place
from gpustages.shapes import SEVEN, SEVENTY, TINY, Shape
from gpustages.stages import Measurement, brief
from gpustages.warming import warm
from leokernels.product import Multiply, torch_linear
from leokernels.table import dtype_name
from leokernels.triton.skinny import narrow_linear, skinny_linear
from leokernels.triton.tiles import NarrowTile, SkinnyTile, Tile
from leoserve.model.llama import Llama

Row = tuple[int, int]
CONTEXT = 1024
MOST_COMPILING = 30.0  # seconds
PRODUCT_ERROR = 2**-8  # of bfloat16's rounding, as a norm
STEP_ERROR = 0.06  # of a network's logits, where products round differently in 32 layers
SHARED_KEYS_ERROR = 2**-7


@dataclass(frozen=True, slots=True)
class Variant:
    """A product for few rows: torch's, or one of ours with a tile."""

    name: str
    multiply: Multiply
    tile: SkinnyTile | NarrowTile | None = None
    most_rows: int = 8

    def __str__(self) -> str:
        match self.tile:
            case SkinnyTile(columns, depth, ahead, warps, stages):
                return f"{self.name} {columns}×{depth}, {ahead} ahead, {warps} w {stages} s"
            case NarrowTile(rows, columns, depth, ahead, parts, warps, stages):
                return f"{self.name} {rows}×{columns}×{depth} in {parts}, {ahead} ahead, {warps} w {stages} s"
            case _:
                return self.name

    @contextmanager
    def chosen(self, early: bool) -> Iterator[None]:
        """With its tile, and with or without early starts."""
        with ExitStack() as stack:
            stack.enter_context(patched("early", early))
            if isinstance(self.tile, SkinnyTile):
                stack.enter_context(patched("skinny", self.tile))
            if isinstance(self.tile, NarrowTile):
                stack.enter_context(patched("narrow", self.tile))
            yield


def _skinny(columns: int, depth: int, ahead: int, warps: int, stages: int, most_rows: int) -> Variant:
    return Variant("float32", skinny_linear, SkinnyTile(columns, depth, ahead, warps, stages), most_rows)


def _narrow(rows: int, columns: int, depth: int, ahead: int, parts: int, warps: int, stages: int) -> Variant:
    return Variant("tensor cores", narrow_linear, NarrowTile(rows, columns, depth, ahead, parts, warps, stages))


LIBRARY = Variant("torch", torch_linear)
PRODUCTS = (
    _skinny(8, 512, 1024, 4, 4, 2),
    _skinny(8, 512, 0, 4, 4, 1),
    _skinny(8, 512, 4096, 4, 4, 1),
    _skinny(16, 256, 1024, 4, 4, 4),
    _skinny(8, 512, 1024, 4, 6, 1),
    _skinny(4, 1024, 1024, 4, 4, 1),
    _skinny(8, 512, 1024, 4, 1, 2),
    _skinny(8, 1024, 1024, 4, 1, 1),
    _skinny(8, 1024, 4096, 4, 1, 1),
    _skinny(4, 2048, 4096, 4, 1, 1),
    _narrow(8, 16, 256, 1024, 1, 1, 6),
    _narrow(8, 16, 512, 1024, 1, 1, 4),
    _narrow(8, 32, 256, 1024, 1, 2, 5),
    _narrow(8, 64, 128, 512, 4, 4, 5),
    _narrow(16, 64, 128, 512, 4, 4, 6),
)
BOTH = (LIBRARY, PRODUCTS[0], PRODUCTS[10])  # that are measured without early starts, too
EIGHT_BIT_TILES = (
    Tile(1, 64, 4, 1, 128),
    Tile(1, 64, 4, 2, 128),
    Tile(1, 64, 4, 3, 128),
    Tile(1, 64, 2, 3, 128),
    Tile(1, 128, 4, 1, 128),
    Tile(1, 128, 4, 2, 128),
    Tile(1, 128, 2, 1, 168),
    Tile(1, 256, 8, 1, 128),
    Tile(1, 256, 4, 1, 168),
    Tile(16, 32, 4, 3, 168),
    Tile(16, 64, 4, 3, 168),
    Tile(16, 64, 2, 2, 255),
)
SIXTEEN_BIT_TILES = (
    Tile(1, 128, 4, 1),
    Tile(1, 128, 4, 2),
    Tile(1, 64, 4, 2),
    Tile(1, 64, 2, 1),
    Tile(16, 64, 4, 3),
)
GROUPED_TILES = (
    Tile(16, 64, 4, 2, 128),
    Tile(16, 64, 4, 3, 128),
    Tile(16, 64, 2, 3, 128),
    Tile(16, 128, 4, 2),
    Tile(16, 32, 2, 4, 128),
    Tile(16, 32, 4, 2, 168),
    Tile(16, 64, 4, 2, 255),
)
PROMPT_TILES = (
    Tile(128, 64, 8, 2),
    Tile(128, 64, 4, 2),
    Tile(128, 64, 4, 3),
    Tile(128, 64, 4, 4),
    Tile(128, 32, 4, 3),
    Tile(64, 64, 4, 2),
    Tile(64, 64, 4, 3),
    Tile(64, 64, 4, 4),
    Tile(64, 32, 4, 4),
    Tile(128, 128, 8, 2),
    Tile(128, 32, 8, 3),
)


def measure(place: Place) -> Iterator[Measurement]:
    """What decides most comes first: the chain, caches of 8 bits, then the other tiles."""
    seconds = warm(place, _compiled, seconds=MOST_COMPILING)
    yield {"name": "compiling", "note": f"{seconds:.0f} s"}
    yield from chain(place, TINY if place.tiny else SEVEN)
    yield from attention_tiles(place)


def chain(place: Place, shape: Shape) -> Iterator[Measurement]:
    """Each product over the layers' weights, then whole steps."""
    model = random_network(place, shape)
    batches = (2,) if place.tiny else (1, 2, 4, 8)
    for batch in batches:
        yield from _steps(place, shape, model, batch, first=batch == batches[0])
    for batch in batches if place.tiny else (1, 8):
        for name in ("qkv", "output", "gate_up", "down"):
            yield from _products(place, model, name, batch)
    del model
    release(place)


def _variants(place: Place, batch: int) -> list[Variant]:
    fitting = [variant for variant in PRODUCTS if batch <= variant.most_rows]
    return [LIBRARY, *([fitting[-1]] if place.tiny else fitting)]


def _starts(place: Place, variant: Variant) -> tuple[bool, ...]:
    """Late and early ones; the interpreter knows no early ones."""
    if place.tiny:
        return (False,)
    return (False, True) if variant in BOTH else (True,)


def _products(place: Place, model: Llama, name: str, batch: int) -> Iterator[Measurement]:
    """One of a layer's products, layer after layer, early where that is possible."""
    weights = [getattr(layer, name).weight for layer in model.layers]
    x = torch.randn(batch, weights[0].shape[1], dtype=place.dtype, device=place.device)
    expected = x.double() @ weights[-1].double().T
    for variant in _variants(place, batch):
        title = f"{name} {weights[0].shape[1]}×{weights[0].shape[0]} of {batch}: {variant}"
        with variant.chosen(early=not place.tiny):
            try:
                yield _checked(title, variant.multiply(x, weights[-1]), expected, PRODUCT_ERROR)
                timing = place.stopwatch.measure(*[partial(variant.multiply, x, weight) for weight in weights])
                yield {"name": title, "gb_s": weights[0].nbytes / timing.ms / 1e6, **timing.entry()}
            except Exception as error:
                yield {"name": title, "note": brief(error)}


def _steps(place: Place, shape: Shape, model: Llama, batch: int, *, first: bool) -> Iterator[Measurement]:
    """A step of all layers and the head, with each product, with and without early starts."""
    context = 20 if place.tiny else CONTEXT
    problem = problem_of(place, shape, [(context - 1, 1)] * batch, None, layers=shape.layers)
    tokens = torch.arange(batch, device=place.device) + 3
    positions = torch.full((batch,), context - 1, device=place.device)
    out = torch.empty(batch, shape.vocab, device=place.device)
    read = weight_bytes(model) + batch * context * shape.kv_bytes(place.dtype.itemsize)

    def step() -> None:
        out.copy_(model.logits(model.forward(tokens, positions, problem.caches, problem.metadata)))

    expected: Tensor | None = None
    for variant in _variants(place, batch):
        multiply_by(model, variant.multiply)
        late: Tensor | None = None
        for early in _starts(place, variant):
            title = f"step B{batch}, {variant}{', early' if early else ''}"
            with variant.chosen(early):
                try:
                    timing = place.stopwatch.measure(step)
                except Exception as error:
                    yield {"name": title, "note": brief(error)}
                    continue
            yield {"name": title, "gb_s": read / timing.ms / 1e6, **timing.entry()}
            expected = out.clone() if expected is None else expected
            yield _checked(title, out, expected, STEP_ERROR)
            if early and late is not None:
                yield {"name": f"{title}: the bits of the step that is not", "ok": torch.equal(out, late)}
            late = out.clone()
    multiply_by(model, torch_linear)


def attention_tiles(place: Place) -> Iterator[Measurement]:
    """Decode with caches of 8 bits, of 16, of heads that share keys; then prompts."""
    seven, seventy = (TINY, TINY) if place.tiny else (SEVEN, SEVENTY)
    batches = (2,) if place.tiny else (1, 64)
    context = 20 if place.tiny else CONTEXT
    for kv_dtype in place.eight_bit:
        for tile in EIGHT_BIT_TILES[:1] if place.tiny else EIGHT_BIT_TILES:
            yield from _decode(place, seven, batches, context, tile, kv_dtype)
    if place.tiny:
        yield from _prompt(place, seven, PROMPT_TILES[5], prompts(place)[:1])
        return
    for tile in PROMPT_TILES:
        yield from _prompt(place, seven, tile, [prompts(place)[1], prompts(place)[4]])
    for tile in SIXTEEN_BIT_TILES:
        yield from _decode(place, seven, batches, context, tile, None)
    for cached in (None, *place.eight_bit):
        for tile in GROUPED_TILES:
            yield from _decode(place, seventy, batches, context, tile, cached)
    for tile in (PROMPT_TILES[0], PROMPT_TILES[2], PROMPT_TILES[6], PROMPT_TILES[9]):
        yield from _prompt(place, seventy, tile, [[(0, 8192)]])


def _named(tile: Tile) -> str:
    registers = "" if tile.registers is None else f", {tile.registers} registers"
    return f", tile {tile.rows}×{tile.keys}, {tile.warps} w {tile.stages} s{registers}"


def _decode(
    place: Place, shape: Shape, batches: tuple[int, ...], context: int, tile: Tile, kv_dtype: torch.dtype | None
) -> Iterator[Measurement]:
    with patched("decode", tile):
        try:
            yield _agrees(place, shape, [(300, 1), (77, 1), (0, 1)], tile, kv_dtype)
            for batch in batches:
                yield from decode(place, shape, batch, context, kv_dtype=kv_dtype, note=_named(tile))
        except Exception as error:
            yield {"name": f"decode {shape.name}{_named(tile)}", "note": brief(error)}


def _prompt(place: Place, shape: Shape, tile: Tile, cases: list[list[Row]]) -> Iterator[Measurement]:
    with patched("prefill", tile):
        try:
            yield _agrees(place, shape, [(100, 150), (0, 77)], tile, None)
            for rows in cases:
                yield from prefill(place, shape, rows, note=_named(tile))
        except Exception as error:
            yield {"name": f"prefill {shape.name}{_named(tile)}", "note": brief(error)}


def _agrees(place: Place, shape: Shape, rows: list[Row], tile: Tile, kv_dtype: torch.dtype | None) -> Measurement:
    """With the reference in float32 over the same cache."""
    of = Heads(shape.heads, shape.kv_heads, shape.head_dim)
    problem = written(rows, of, block_size=64, dtype=place.dtype, kv_dtype=kv_dtype, device=place.device)
    kind = "" if kv_dtype is None else f", {dtype_name(kv_dtype)}"
    found, expected = problem.attend("triton"), problem.wide().attend("reference")
    return _checked(f"{shape.name} {len(rows)} rows{kind}{_named(tile)}", found, expected, SHARED_KEYS_ERROR)


def _checked(name: str, found: Tensor, expected: Tensor, bound: float) -> Measurement:
    error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
    return {"name": f"{name}: error", "ok": error < bound, "error": error}


def _compiled(place: Place) -> Iterator[Callable[[], object]]:
    """All of it once, over little."""

    def product(variant: Variant, early: bool, batch: int, columns: int, rows: int) -> None:
        x = torch.zeros(batch, columns, dtype=place.dtype, device=place.device)
        with variant.chosen(early):
            variant.multiply(x, torch.zeros(rows, columns, dtype=place.dtype, device=place.device))

    def step(early: bool) -> None:
        one = replace(SEVEN, layers=1)
        problem = problem_of(place, one, [(63, 1)], None, layers=1)
        tokens = torch.ones(1, dtype=torch.int64, device=place.device)
        with patched("early", early):
            random_network(place, one).forward(tokens, tokens, problem.caches, problem.metadata)

    yield from (partial(step, early) for early in (True, False))
    for batch in (1, 2, 4):
        for variant in _variants(place, batch)[1:]:
            for early in _starts(place, variant):
                for columns, rows in SEVEN.products().values():
                    if isinstance(variant.tile, SkinnyTile) or batch == 1:
                        yield partial(product, variant, early, batch, columns, rows)

    def attend(kernel: str, tile: Tile, shape: Shape, rows: list[Row], kv_dtype: torch.dtype | None) -> None:
        with patched(kernel, tile):
            problem_of(place, shape, rows, kv_dtype, layers=1).attend("triton")

    for kv_dtype in (*place.eight_bit, None):
        for tile in SIXTEEN_BIT_TILES if kv_dtype is None else EIGHT_BIT_TILES:
            yield partial(attend, "decode", tile, SEVEN, [(63, 1)], kv_dtype)
        for tile in GROUPED_TILES:
            yield partial(attend, "decode", tile, SEVENTY, [(63, 1)], kv_dtype)
    for tile in PROMPT_TILES:
        for shape in (SEVEN, SEVENTY):
            yield partial(attend, "prefill", tile, shape, [(0, 64)], None)
