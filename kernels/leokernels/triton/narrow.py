"""The product of a linear layer for a few rows, as decoding has it alone or beside a few others: x [M, K] by [N, K].

Such a product is bound by reading the weights, each once for 2 M operations. Tensor cores multiply all the same: the
weight is on the side of their instructions that takes 16 rows, and x on the other, which takes 8.

Between two products there is little to do but to wait: for small kernels, for launches, for the first bytes to come.
With EARLY (see jit) a program starts while the kernels before it still run, and asks for the first of its weights,
which do not depend on them, to be brought to the second-level cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from leokernels.triton import tiles
from leokernels.triton.jit import early_options, jit, kernel, launch_options, start_next, wait_for_previous

MOST_ROWS = 8  # beyond, the library's
# A weight's kernels are compiled once it met each of these numbers of rows: those that start early, and those that
# do not.
KINDS_OF_ROWS = (1, tiles.EARLY_ROWS + 1)
LINE = tl.constexpr(64)  # elements of 16 bits in a line of the caches


@jit
def _bring(weight_row: tl.tensor, AHEAD: tl.constexpr) -> None:
    """Ask for the first AHEAD elements of these rows to be brought to the second-level cache."""
    line = tl.arange(0, AHEAD // LINE) * LINE
    place = weight_row[:, None] + line[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [place.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


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
    EARLY: tl.constexpr,
) -> None:
    """COLUMNS of the product. Grid (N / COLUMNS).

    x [rows, K], up to ROWS, weight [N, K] and out [rows, N], all of one dtype. Tile: ROWS by COLUMNS, DEPTH of K at a
    time, tiles.NARROW. With EARLY, the first AHEAD of each of the weight's rows, at most K, are asked for before x is
    known.

    2 ROWS N K operations; moves 2 N K bytes of a weight in 16 bits, and little beside.
    """
    start_next(EARLY)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    weight_row = weight + tl.minimum(column, N - 1).to(tl.int64) * K
    if EARLY and AHEAD >= LINE:
        _bring(weight_row, AHEAD)
    wait_for_previous(EARLY)
    total = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in tl.range(0, K, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        if K % DEPTH == 0:
            w = tl.load(weight_row[:, None] + depth[None, :])
            right = tl.load(x + row[None, :] * K + depth[:, None], mask=row[None, :] < rows, other=0.0)
        else:
            w = tl.load(weight_row[:, None] + depth[None, :], mask=depth[None, :] < K, other=0.0)
            read = (row[None, :] < rows) & (depth[:, None] < K)
            right = tl.load(x + row[None, :] * K + depth[:, None], mask=read, other=0.0)
        total = tl.dot(w, right, total, input_precision="ieee")
    place = out + row[None, :] * N + column[:, None]
    tl.store(place, total.to(out.dtype.element_ty), mask=(row[None, :] < rows) & (column[:, None] < N))


def narrow_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] with M from 1 to MOST_ROWS, weight [N, K] -> x weightᵀ [M, N], float32 up to the last rounding.

    Contiguous and of one dtype: bfloat16 and float16; float32 in the interpreter. Raises ValueError for other rows, and
    where the tensors have gaps.
    """
    (rows, depth), columns = x.shape, weight.shape[0]
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"the product for few rows has 1 to {MOST_ROWS} of them, not {rows}")
    if not x.is_contiguous() or not weight.is_contiguous():
        raise ValueError("the product for few rows needs tensors without gaps")
    capability = tiles.capability(x.device)
    tile = tiles.NARROW
    out = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    narrow_kernel[(triton.cdiv(columns, tile.columns),)](
        x,
        weight,
        out,
        rows,
        N=columns,
        K=depth,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        AHEAD=min(tile.ahead, 1 << (depth.bit_length() - 1)),
        **early_options(tiles.early(capability, rows)),
        **launch_options(tile.warps, tile.stages),
    )
    return out


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See leokernels.product.Multiply: narrow_linear up to MOST_ROWS, beyond the library's."""
    if 1 <= x.shape[0] <= MOST_ROWS:
        return narrow_linear(x, weight)
    return F.linear(x, weight)
