"""Stage 7: a decoding step as the sequence of kernels that it is, and its products and grouped attention alone.

7B's layers follow each other in one recording, over different weights, with the library's products and with ours for
few rows, and with kernels that start before the ones before them have ended. Each product is checked against float64
before it is timed, attention against the reference, a step that starts early against the same one that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gpustages.attention import decode, patched, problem_of
from gpustages.machine import COLD_BYTES
from gpustages.network import multiply_by, random_network, release, weight_bytes
from gpustages.paged import Heads, written
from gpustages.place import Place
from gpustages.shapes import SEVEN, SEVENTY, THIRTEEN, TINY, Shape
from gpustages.stages import Measurement
from gpustages.warming import warm
from leokernels.product import Multiply, torch_linear
from leokernels.table import dtype_name
from leokernels.triton import narrow
from leoserve.model.llama import Llama

CONTEXT = 1024
MOST_COMPILING = 20.0  # seconds
PRODUCT_ERROR = 2**-8  # of bfloat16's rounding, as a norm
STEP_ERROR = 0.06  # of a network's logits, where products round differently in 32 layers
SHARED_KEYS_ERROR = 2**-7
PRODUCTS: dict[str, Multiply] = {"torch": torch_linear, "narrow": narrow.linear}


def measure(place: Place) -> Iterator[Measurement]:
    """What decides most comes first: whole steps, then their products in each network, then 70B's caches of 8 bits."""
    yield {"name": "compiling", "note": f"{warm(place, _compiled, seconds=MOST_COMPILING):.0f} s"}
    yield from _chain(place, TINY if place.tiny else SEVEN)
    for shape in (TINY,) if place.tiny else (SEVEN, SEVENTY, THIRTEEN):
        yield from _products(place, shape)
    yield from _grouped(place)


def _chain(place: Place, shape: Shape) -> Iterator[Measurement]:
    model = random_network(place, shape)
    for batch in (2,) if place.tiny else (1, 2, 4, 8):
        yield from _steps(place, shape, model, batch)
    del model
    release(place)


def _starts(place: Place) -> tuple[bool, ...]:
    """Late and early ones; the interpreter knows no early ones."""
    return (False,) if place.tiny else (False, True)


def _steps(place: Place, shape: Shape, model: Llama, batch: int) -> Iterator[Measurement]:
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
    for name, multiply in PRODUCTS.items():
        multiply_by(model, multiply)
        late: Tensor | None = None
        for early in _starts(place):
            title = f"step B{batch}, {name}{', early' if early else ''}"
            with patched("early", early):
                timing = place.stopwatch.measure(step)
            yield {"name": title, "gb_s": read / timing.ms / 1e6, **timing.entry()}
            expected = out.clone() if expected is None else expected
            yield _checked(title, out, expected, STEP_ERROR)
            if early and late is not None:
                yield {"name": f"{title}: the bits of the step that is not", "ok": torch.equal(out, late)}
            late = out.clone()


def _products(place: Place, shape: Shape) -> Iterator[Measurement]:
    """Each product of a layer and the head's, over enough different weights that none is cached, as served."""
    for name, (depth, columns) in shape.products().items():
        nbytes = columns * depth * place.dtype.itemsize
        copies = 1 if place.tiny else max(1, -(-COLD_BYTES // nbytes))
        weights = [torch.randn(columns, depth, dtype=place.dtype, device=place.device) for _ in range(copies)]
        for batch in (2,) if place.tiny else (1, 8):
            x = torch.randn(batch, depth, dtype=place.dtype, device=place.device)
            exact = x.double() @ weights[-1].double().T
            for product, multiply in PRODUCTS.items():
                title = f"{shape.name} {name} {depth}×{columns} of {batch}: {product}"
                yield _checked(title, multiply(x, weights[-1]), exact, PRODUCT_ERROR)
                timing = place.stopwatch.measure(*[partial(multiply, x, weight) for weight in weights])
                yield {"name": title, "gb_s": nbytes / timing.ms / 1e6, **timing.entry()}


def _grouped(place: Place) -> Iterator[Measurement]:
    """Decoding 70B's heads, of which 8 share their keys, from caches of 8 bits."""
    shape = TINY if place.tiny else SEVENTY
    for kv_dtype in place.eight_bit:
        yield _agrees(place, shape, [(300, 1), (77, 1), (0, 1)], kv_dtype)
        for batch in (2,) if place.tiny else (1, 64):
            yield from decode(place, shape, batch, 20 if place.tiny else CONTEXT, kv_dtype=kv_dtype)


def _agrees(place: Place, shape: Shape, rows: list[tuple[int, int]], kv_dtype: torch.dtype) -> Measurement:
    """With the reference in float32 over the same cache."""
    of = Heads(shape.heads, shape.kv_heads, shape.head_dim)
    problem = written(rows, of, block_size=64, dtype=place.dtype, kv_dtype=kv_dtype, device=place.device)
    found, expected = problem.attend("triton"), problem.wide().attend("reference")
    return _checked(f"{shape.name} {len(rows)} rows, {dtype_name(kv_dtype)}", found, expected, SHARED_KEYS_ERROR)


def _checked(name: str, found: Tensor, expected: Tensor, bound: float) -> Measurement:
    error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
    return {"name": f"{name}: error", "ok": error < bound, "error": error}


def _compiled(place: Place) -> Iterator[Callable[[], object]]:
    """All of it once, over little."""

    def product(early: bool, depth: int, columns: int) -> None:
        x = torch.zeros(1, depth, dtype=place.dtype, device=place.device)
        with patched("early", early):
            narrow.linear(x, torch.zeros(columns, depth, dtype=place.dtype, device=place.device))

    def step(early: bool) -> None:
        one = replace(SEVEN, layers=1)
        problem = problem_of(place, one, [(63, 1)], None, layers=1)
        tokens = torch.ones(1, dtype=torch.int64, device=place.device)
        with patched("early", early):
            random_network(place, one).forward(tokens, tokens, problem.caches, problem.metadata)

    yield from (partial(step, early) for early in (True, False))
    for depth, columns in dict.fromkeys(
        size for shape in (SEVEN, SEVENTY, THIRTEEN) for size in shape.products().values()
    ):
        yield from (partial(product, early, depth, columns) for early in (True, False))

    def attend(kv_dtype: torch.dtype) -> None:
        problem_of(place, SEVENTY, [(63, 1)], kv_dtype, layers=1).attend("triton")

    yield from (partial(attend, kv_dtype) for kv_dtype in place.eight_bit)
