"""The product of a linear layer for a few rows, as decoding has it alone or beside a few others: x [M, K] by [N, K].

Such a product is bound by reading the weights, each once for 2 M operations. skinny_kernel multiplies without tensor
cores, in float32, as long as M multiplications an element take no longer than reading it; narrow_kernel has the weight
on the side of the tensor cores' instructions that takes 16 rows or 64, and x on the other, which takes 8.

Between two products there is little to do but to wait: for small kernels, for launches, for the first bytes to come.
With EARLY (see jit) a program starts while the kernels before it still run, and asks for the first of its weights,
which do not depend on them, to be brought to the second-level cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from leokernels.triton import tiles
from leokernels.triton.jit import early_options, jit, kernel, launch_options, start_next, wait_for_previous
from leokernels.triton.matmul import add_parts_kernel

MOST_ROWS = 8
VECTOR = tl.constexpr(8)  # elements of 16 bits that a thread loads at once
LINE = tl.constexpr(64)  # elements of 16 bits in a line of the caches


@kernel()
def skinny_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    AHEAD: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """COLUMNS of the product. Grid (N / COLUMNS, up).

    x [M, K], weight [N, K] and out [M, N] of one dtype, M a power of 2. DEPTH of K at a time, of which STAGES are on
    their way; with EARLY the first AHEAD of K are asked for before x is known.
    """
    start_next(EARLY)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < N
    weight_row = weight + tl.minimum(column, N - 1).to(tl.int64) * K
    if EARLY and AHEAD > 0:
        _bring(weight_row, AHEAD)
    wait_for_previous(EARLY)
    row = tl.arange(0, M)
    across: tl.constexpr = DEPTH // VECTOR
    place = tl.arange(0, across)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    total = tl.zeros([M, COLUMNS, across], tl.float32)
    for start in tl.range(0, K, DEPTH, num_stages=STAGES):
        depth = start + place
        if K % DEPTH == 0:
            w = tl.load(weight_row[:, None, None] + depth[None, :, :])
            left = tl.load(x + row[:, None, None] * K + depth[None, :, :])
        else:
            w = tl.load(weight_row[:, None, None] + depth[None, :, :], mask=depth[None, :, :] < K, other=0.0)
            left = tl.load(x + row[:, None, None] * K + depth[None, :, :], mask=depth[None, :, :] < K, other=0.0)
        total += tl.sum(w.to(tl.float32)[None, :, :, :] * left.to(tl.float32)[:, None, :, :], 3)
    result = tl.sum(total, 2)
    tl.store(out + row[:, None] * N + column[None, :], result.to(out.dtype.element_ty), mask=inside[None, :])


@jit
def _bring(weight_row: tl.tensor, AHEAD: tl.constexpr) -> None:
    """Ask for the first AHEAD elements of these rows to be brought to the second-level cache."""
    line = tl.arange(0, AHEAD // LINE) * LINE
    place = weight_row[:, None] + line[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [place.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


def _power_below(number: int) -> int:
    """The largest power of 2 up to `number`."""
    return 1 << (number.bit_length() - 1)


def skinny_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] with M up to MOST_ROWS, weight [N, K], contiguous and of one dtype -> x weightᵀ [M, N]."""
    (rows, depth), columns = x.shape, weight.shape[0]
    padded = triton.next_power_of_2(rows)
    if padded != rows:
        x = torch.nn.functional.pad(x, (0, 0, 0, padded - rows))
    out = torch.empty(padded, columns, dtype=x.dtype, device=x.device)
    capability = tiles.capability(x.device)
    tile, early = tiles.skinny(capability, padded), tiles.early(capability)
    skinny_kernel[(triton.cdiv(columns, tile.columns),)](
        x,
        weight,
        out,
        M=padded,
        N=columns,
        K=depth,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        AHEAD=min(tile.ahead, _power_below(depth)),
        STAGES=tile.stages,
        **early_options(early),
        **launch_options(tile.warps, tile.stages),
    )
    return out[:rows]


@kernel(varying=("rows",))
def narrow_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    AHEAD: tl.constexpr,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """COLUMNS of the product by tensor cores, the weight on the side of which they take 64. Grid (N / COLUMNS, PARTS).

    x [rows, K], up to ROWS; out [rows, N], or float32 [PARTS, rows, N] of parts of K that are still to be added.
    """
    start_next(EARLY)
    LENGTH: tl.constexpr = tl.cdiv(tl.cdiv(K, DEPTH), PARTS) * DEPTH
    part = tl.program_id(1)
    begin, stop = part * LENGTH, tl.minimum((part + 1) * LENGTH, K)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    weight_row = weight + tl.minimum(column, N - 1).to(tl.int64) * K
    if EARLY and AHEAD > 0:
        _bring(weight_row + begin, AHEAD)
    wait_for_previous(EARLY)
    total = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in tl.range(begin, stop, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        if K % DEPTH == 0:
            w = tl.load(weight_row[:, None] + depth[None, :])
            right = tl.load(x + row[None, :] * K + depth[:, None], mask=row[None, :] < rows, other=0.0)
        else:
            w = tl.load(weight_row[:, None] + depth[None, :], mask=depth[None, :] < K, other=0.0)
            read = (row[None, :] < rows) & (depth[:, None] < K)
            right = tl.load(x + row[None, :] * K + depth[:, None], mask=read, other=0.0)
        total = tl.dot(w, right, total, input_precision="ieee")
    place = out + (part * rows + row[None, :]) * N + column[:, None]
    tl.store(place, total.to(out.dtype.element_ty), mask=(row[None, :] < rows) & (column[:, None] < N))


def narrow_linear(x: Tensor, weight: Tensor) -> Tensor:
    """As skinny_linear, by tensor cores."""
    (rows, depth), columns = x.shape, weight.shape[0]
    capability = tiles.capability(x.device)
    tile, early = tiles.narrow(capability, columns, depth), tiles.early(capability)
    out = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    parts = tile.parts
    target = out if parts == 1 else torch.empty(parts, rows, columns, dtype=torch.float32, device=x.device)
    narrow_kernel[(triton.cdiv(columns, tile.columns), parts)](
        x,
        weight,
        target,
        rows,
        N=columns,
        K=depth,
        ROWS=max(tile.rows, triton.next_power_of_2(rows)),
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        AHEAD=min(tile.ahead, _power_below(depth // parts)),
        PARTS=parts,
        **early_options(early),
        **launch_options(tile.warps, tile.stages),
    )
    if parts > 1:
        grid = (triton.cdiv(out.numel(), tiles.ADDED_ELEMENTS),)
        options = launch_options(warps=4, stages=1) | early_options(early)
        add_parts_kernel[grid](target, out, out.numel(), PARTS=parts, TAKEN=tiles.ADDED_ELEMENTS, **options)
    return out
