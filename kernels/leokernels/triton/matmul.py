"""The product of a linear layer whose rows have the same bits however many there are: x [M, K] by weight [N, K].

Libraries choose another kernel, and another split of K, for another M; then a token's numbers depend on what runs
beside it. Here the sum of each element is always taken alike: K is cut into parts, a number of them that N and K alone
decide; each part is added up in float32 from its beginning by the same matrix instructions, and the parts are added in
their order. What M decides is only who does it:

- While a product has fewer tiles than a GPU has multiprocessors, each part of a tile has a program of its own, and
  `add_parts_kernel` adds up what they leave in float32: so that even for one row enough programs read the weights to
  keep the memory busy. Beyond, a program takes all parts of its tile, one after the other.
- Up to 64 rows, a tile has 64, else 128. A tile of twice the rows has twice the warps, each with the same instructions
  as before: a row's place in its tile, like the tile's in x, changes no sum. Rows past the end are masked: not read,
  and multiplied as zeros.

Source: split K and its ordered reduction as in Osama et al., "Stream-K: work-centric parallel decomposition for dense
matrix-matrix multiplication on the GPU", 2023, with a split that is fixed; that invariance to the batch needs just this
is He et al., "Defeating nondeterminism in LLM inference", 2025.

2 M N K operations. Moves, of E bytes an element, E (N K + M K + M N) at least, so for M = 1 the weights; tiles of x and
weight that are needed again are mostly found in the L2 cache, since programs follow each other down a few tiles of rows
before they go on to the next columns. Apart: 8 bytes an element and part. One row costs as many operations as the
fewest rows of a tile, 64: 0.85 TFLOP for the 6.6 billion weights of 7B, 1 ms of an H200's tensor cores in the shade of
the 3 ms in which the weights are read; on an A100 2.7 ms in the shade of 7.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from leokernels.triton import tiles
from leokernels.triton.jit import jit, kernel, launch_options

# A weight's kernels are compiled once it met each of these numbers of rows, and as many as will ever come.
KINDS_OF_ROWS = (1, tiles.FEW_ROWS + 1)


@kernel(varying=("rows",))
def linear_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    APART: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
) -> None:
    """One tile of the product. Grid (tiles, PARTS if APART else 1).

    x [rows, K] and weight [N, K] of one dtype. APART: a program adds up one part of K, and out is [PARTS, rows, N]
    float32; otherwise all of them, and out is [rows, N] of the dtype. Tile: ROWS by COLUMNS, DEPTH of K at a time, from
    tiles.product; BAND tiles of rows share the tiles of weight that they are next to need.
    """
    row_tile, column_tile = _tile(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(N, COLUMNS), BAND)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    x_row = x + row.to(tl.int64)[:, None] * K
    weight_row = weight + column.to(tl.int64)[None, :] * K
    rows_inside, columns_inside = row[:, None] < rows, column[None, :] < N
    LENGTH: tl.constexpr = tl.cdiv(tl.cdiv(K, DEPTH), PARTS) * DEPTH
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    if PARTS == 1:
        total = _add_up(x_row, weight_row, rows_inside, columns_inside, 0, K, total, N, K, COLUMNS, DEPTH)
    elif APART:
        part = tl.program_id(1)
        begin, stop = part * LENGTH, tl.minimum((part + 1) * LENGTH, K)
        total = _add_up(x_row, weight_row, rows_inside, columns_inside, begin, stop, total, N, K, COLUMNS, DEPTH)
        out += part.to(tl.int64) * rows * N
    else:
        for part in tl.range(0, PARTS):
            zeros = tl.zeros([ROWS, COLUMNS], tl.float32)
            begin, stop = part * LENGTH, tl.minimum((part + 1) * LENGTH, K)
            total += _add_up(x_row, weight_row, rows_inside, columns_inside, begin, stop, zeros, N, K, COLUMNS, DEPTH)
    place = out + row.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=rows_inside & columns_inside)


@jit
def _tile(program: tl.tensor, row_tiles: tl.tensor, column_tiles: tl.tensor, BAND: tl.constexpr) -> tl.tensor:
    """Which tile a program computes: down BAND tiles of rows, then the next tile of columns, then the next band."""
    band = program // (BAND * column_tiles)
    within = program % (BAND * column_tiles)
    height = tl.minimum(row_tiles - band * BAND, BAND)
    return band * BAND + within % height, within // height


@jit
def _add_up(
    x_row: tl.tensor,
    weight_row: tl.tensor,
    rows_inside: tl.tensor,
    columns_inside: tl.tensor,
    begin: tl.tensor,
    stop: tl.tensor,
    total: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """`total` and the products of the elements of K from `begin`, a multiple of DEPTH, to `stop`, in their order."""
    for start in tl.range(begin, stop, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        read, weights_read = rows_inside, columns_inside
        if K % DEPTH != 0:
            read &= depth[None, :] < K
            weights_read &= depth[:, None] < K
        left = tl.load(x_row + depth[None, :], mask=read, other=0.0)
        if (N % COLUMNS == 0) & (K % DEPTH == 0):
            right = tl.load(weight_row + depth[:, None])
        else:
            right = tl.load(weight_row + depth[:, None], mask=weights_read, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@kernel(varying=("elements",))
def add_parts_kernel(
    partial: tl.tensor, out: tl.tensor, elements: tl.tensor, PARTS: tl.constexpr, TAKEN: tl.constexpr
) -> None:
    """Adds the parts up in their order, as linear_kernel does where it takes them all. Grid (elements / TAKEN, up).

    partial [PARTS, elements] float32, out [elements] of any dtype.
    """
    place = tl.program_id(0).to(tl.int64) * TAKEN + tl.arange(0, TAKEN)
    inside = place < elements
    total = tl.zeros([TAKEN], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(partial + part * elements.to(tl.int64) + place, mask=inside, other=0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] and weight [N, K], contiguous and of one dtype -> x weightᵀ [M, N], float32 up to the last rounding.

    Every row has the same bits in any M. bfloat16 and float16; float32 in the interpreter. Raises ValueError where the
    tensors have gaps.
    """
    if not x.is_contiguous() or not weight.is_contiguous():
        raise ValueError("the Triton product needs tensors without gaps")
    (rows, depth), columns = x.shape, weight.shape[0]
    out = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    if not rows:
        return out
    capability = tiles.capability(x.device)
    tile = tiles.product(capability, rows)
    parts = tiles.product_parts(tile, columns, depth)
    count = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    apart = parts > 1 and count < tiles.FEW_PROGRAMS
    target = torch.empty(parts, rows, columns, dtype=torch.float32, device=x.device) if apart else out
    linear_kernel[(count, parts if apart else 1)](
        x,
        weight,
        target,
        rows,
        N=columns,
        K=depth,
        PARTS=parts,
        APART=apart,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        BAND=tiles.PRODUCT_BAND,
        **launch_options(tile.warps, tile.stages),
    )
    if apart:
        grid = (triton.cdiv(out.numel(), tiles.ADDED_ELEMENTS),)
        options = launch_options(warps=4, stages=1)
        add_parts_kernel[grid](target, out, out.numel(), PARTS=parts, TAKEN=tiles.ADDED_ELEMENTS, **options)
    return out
