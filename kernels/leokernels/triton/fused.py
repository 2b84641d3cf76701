"""What a layer does between its matrix products, each in one pass over memory. leokernels.fused has the torch versions.

These kernels compute next to nothing; what counts is that each number is read once and written once. Every row is
reduced by one program in one order, so its bits do not depend on how many rows there are.

| kernel         | program                           | bytes moved a row (E bytes an element)               |
| -------------- | --------------------------------- | ---------------------------------------------------- |
| rms_norm       | a row, hidden rounded up to 2**n  | 4 E hidden with a residual, 2 E without              |
| rope_and_cache | HEADS_A_TILE heads of a row       | E D (2 heads + 2 kv_heads) + 8-bit or E D 2 kv_heads |
| silu_and_mul   | SILU_TILE of a row's elements     | 3 E inner                                            |
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from leokernels.contract import KVCache
from leokernels.triton import tiles
from leokernels.triton.jit import early_options, jit, kernel, launch_options, start_next, wait_for_previous

NORM_ELEMENTS_A_THREAD = 16
HEADS_A_TILE = 16
SILU_TILE = 1024
INT8_LARGEST = tl.constexpr(127.0)
FP8_LARGEST = tl.constexpr(448.0)  # of float8_e4m3fn
# Added to and taken from a float32 below 2**22 it leaves the nearest integer, ties to even.
ROUNDER = tl.constexpr(12582912.0)


@jit
def rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    HIDDEN: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    TILE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One row's sum with its residual, written over the residual, and the norm of it. Grid (rows,).

    x, residual, out [rows, HIDDEN] and weight [HIDDEN] of one dtype. Zhang & Sennrich, "Root mean square layer
    normalization", 2019. The sum is rounded to the dtype before it is normed, the norm before it meets the weight: as
    the network was trained.
    """
    start_next(EARLY)
    wait_for_previous(EARLY)
    place = tl.program_id(0).to(tl.int64) * HIDDEN + tl.arange(0, TILE)
    inside = tl.arange(0, TILE) < HIDDEN
    dtype = out.dtype.element_ty
    total = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total = (tl.load(residual + place, mask=inside, other=0.0).to(tl.float32) + total).to(dtype)
        tl.store(residual + place, total, mask=inside)
        total = total.to(tl.float32)
    normed = (total * tl.rsqrt(tl.sum(total * total, 0) / HIDDEN + eps)).to(dtype).to(tl.float32)
    scale = tl.load(weight + tl.arange(0, TILE), mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (scale * normed).to(dtype), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The norm of `residual + x`, and that sum, in the residual's place in memory; see leokernels.fused.RmsNorm.

    x and residual [rows, hidden], weight [hidden], contiguous, of one dtype. Without a residual the sum is x itself.
    """
    rows, hidden = x.shape
    out = torch.empty_like(x)
    summed = x if residual is None else residual
    if rows:
        tile = triton.next_power_of_2(hidden)
        options = launch_options(warps=min(16, max(1, tile // (32 * NORM_ELEMENTS_A_THREAD))), stages=1)
        early = _early(x)
        rms_norm_kernel[(rows,)](x, summed, weight, out, eps, hidden, residual is not None, tile, **early, **options)
    return out, summed


@kernel(varying=("slot_count",), unaligned=("slots",))
def rope_and_cache_kernel(
    qkv: tl.tensor,
    angles: tl.tensor,
    slots: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    slot_count: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    LARGEST: tl.constexpr,
    TILE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """TILE heads of one row. Grid (rows, tiles of the query heads + of the key heads + of the value heads).

    qkv [rows, HEADS + 2 KV_HEADS, 2 HALF]; angles [rows, 2, HALF] float32; slots [slot_count] int64; query [rows,
    HEADS, 2 HALF]; keys and values [slots of the cache, KV_HEADS, 2 HALF], their scales [slots, KV_HEADS] float32 where
    LARGEST, the largest stored value, is not 0. Rotary positions: Su et al., "RoFormer", 2021; element i is paired with
    i + HALF, as in Llama's published weights. 6 operations a rotated pair.
    """
    start_next(EARLY)
    wait_for_previous(EARLY)
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    query_tiles: tl.constexpr = (HEADS + TILE - 1) // TILE
    kv_tiles: tl.constexpr = (KV_HEADS + TILE - 1) // TILE
    source = qkv + row * (HEADS + 2 * KV_HEADS) * 2 * HALF
    if tile < query_tiles:
        head = tile * TILE + tl.arange(0, TILE)
        first, second = _load_halves(source, head, HEADS, HALF)
        first, second = _rotate(first, second, angles + row * 2 * HALF, HALF)
        _store_halves(query + row * HEADS * 2 * HALF, first, second, head, HEADS, HALF)
    elif row < slot_count:
        slot = tl.load(slots + row)
        if slot >= 0:
            dtype = qkv.dtype.element_ty
            if tile < query_tiles + kv_tiles:
                head = (tile - query_tiles) * TILE + tl.arange(0, TILE)
                first, second = _load_halves(source + HEADS * 2 * HALF, head, KV_HEADS, HALF)
                first, second = _rotate(first, second, angles + row * 2 * HALF, HALF)
                first, second = first.to(dtype).to(tl.float32), second.to(dtype).to(tl.float32)
                _put(keys, key_scales, slot, first, second, head, KV_HEADS, HALF, LARGEST)
            else:
                head = (tile - query_tiles - kv_tiles) * TILE + tl.arange(0, TILE)
                first, second = _load_halves(source + (HEADS + KV_HEADS) * 2 * HALF, head, KV_HEADS, HALF)
                _put(values, value_scales, slot, first, second, head, KV_HEADS, HALF, LARGEST)


@jit
def _load_halves(source: tl.tensor, head: tl.tensor, HEADS: tl.constexpr, HALF: tl.constexpr) -> tl.tensor:
    """The first and the second halves of these heads, each [TILE, HALF] float32."""
    place = source + head[:, None] * 2 * HALF + tl.arange(0, HALF)[None, :]
    inside = head[:, None] < HEADS
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    return first, tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)


@jit
def _store_halves(
    target: tl.tensor, first: tl.tensor, second: tl.tensor, head: tl.tensor, HEADS: tl.constexpr, HALF: tl.constexpr
) -> None:
    """The opposite of _load_halves, rounding to the target's dtype."""
    place = target + head[:, None] * 2 * HALF + tl.arange(0, HALF)[None, :]
    inside = head[:, None] < HEADS
    tl.store(place, first.to(target.dtype.element_ty), mask=inside)
    tl.store(place + HALF, second.to(target.dtype.element_ty), mask=inside)


@jit
def _rotate(first: tl.tensor, second: tl.tensor, angles: tl.tensor, HALF: tl.constexpr) -> tl.tensor:
    """Halves of heads turned by the row's angles."""
    cos = tl.load(angles + tl.arange(0, HALF))[None, :]
    sin = tl.load(angles + HALF + tl.arange(0, HALF))[None, :]
    return first * cos - second * sin, second * cos + first * sin


@jit
def _put(
    cache: tl.tensor,
    scales: tl.tensor,
    slot: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    head: tl.tensor,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    """Halves of heads into a slot of the cache, in 8 bits with a scale for each head where LARGEST is not 0."""
    if LARGEST > 0:
        peak = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        scale = tl.div_rn(peak, tl.full(peak.shape, LARGEST, tl.float32))
        scale = tl.where(scale > 0, scale, 1.0)
        tl.store(scales + slot * KV_HEADS + head, scale, mask=head < KV_HEADS)
        first = _steps(first, scale, cache.dtype.element_ty, LARGEST)
        second = _steps(second, scale, cache.dtype.element_ty, LARGEST)
    _store_halves(cache + slot * KV_HEADS * 2 * HALF, first, second, head, KV_HEADS, HALF)


@jit
def _steps(x: tl.tensor, scale: tl.tensor, dtype: tl.constexpr, LARGEST: tl.constexpr) -> tl.tensor:
    """x [TILE, HALF] in units of its head's scale [TILE], within what is stored; whole numbers for int8."""
    whole = tl.broadcast_to(scale[:, None], x.shape)
    steps = tl.minimum(tl.maximum(tl.div_rn(x, whole), -LARGEST), LARGEST)
    if dtype == tl.int8:
        steps = (steps + ROUNDER) - ROUNDER
    return steps


def rope_and_cache(
    qkv: Tensor, angles: Tensor, cache: KVCache, slot_mapping: Tensor, heads: int, kv_heads: int
) -> Tensor:
    """Rotated queries [rows, heads, head_dim]; rotated keys and the values go into the cache.

    See leokernels.fused.RopeAndCache. All tensors contiguous, head_dim / 2 a power of 2. An 8-bit cache with scales is
    int8 or, from compute capability 8.9 on, float8_e4m3fn. Slots of -1, and rows past the slots, write nothing.
    """
    rows, _, head_dim = qkv.shape
    query = torch.empty(rows, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if not rows:
        return query
    tile = min(HEADS_A_TILE, triton.next_power_of_2(max(heads, kv_heads)))
    tiles = triton.cdiv(heads, tile) + 2 * triton.cdiv(kv_heads, tile)
    largest = 0.0
    if cache.key_scales is not None:
        largest = INT8_LARGEST.value if cache.keys.dtype is torch.int8 else FP8_LARGEST.value
    rope_and_cache_kernel[(rows, tiles)](
        qkv,
        angles,
        slot_mapping,
        query,
        cache.keys,
        cache.values,
        cache.key_scales,
        cache.value_scales,
        slot_mapping.shape[0],
        heads,
        kv_heads,
        head_dim // 2,
        largest,
        tile,
        **_early(qkv),
        **launch_options(warps=4, stages=1),
    )
    return query


@jit
def silu_and_mul_kernel(
    gate_up: tl.tensor, out: tl.tensor, INNER: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr
) -> None:
    """TILE elements of one row. Grid (rows, tiles). gate_up [rows, 2 INNER], out [rows, INNER], of one dtype.

    SwiGLU: Shazeer, "GLU variants improve transformer", 2020. silu(gate) is rounded to the dtype before it meets `up`.
    """
    start_next(EARLY)
    wait_for_previous(EARLY)
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < INNER
    dtype = out.dtype.element_ty
    gate = tl.load(gate_up + row * 2 * INNER + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * INNER + INNER + column, mask=inside, other=0.0).to(tl.float32)
    activated = (gate / (1 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out + row * INNER + column, (activated * up).to(dtype), mask=inside)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[rows, 2 inner] contiguous -> silu(gate) * up [rows, inner]; see leokernels.fused.SiluAndMul."""
    rows, width = gate_up.shape
    inner = width // 2
    out = torch.empty(rows, inner, dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        grid = (rows, triton.cdiv(inner, SILU_TILE))
        options = launch_options(warps=4, stages=1)
        silu_and_mul_kernel[grid](gate_up, out, inner, SILU_TILE, **_early(gate_up), **options)
    return out


def _early(x: Tensor) -> dict[str, Any]:
    """For a step of as many rows as x has."""
    return early_options(tiles.early(tiles.capability(x.device), x.shape[0]))
