"""What a layer is made of: the matrix product, attention, and what lies between the products."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from leokernels.contract import AttentionMetadata, KVCache
from leokernels.native.loading import KINDS, library, pool
from leokernels.native.memory import Slabs

# The structures of leonative.h, field by field.
_NORM = struct.Struct("@5P2qf")
_GATE = struct.Struct("@2P2q")
_ROPE = struct.Struct("@6P6q")
_ATTENTION = struct.Struct("@7P7qf")
_SLABS = Slabs()


class Packed:
    """A weight [out_features, in_features], float32 or bfloat16, in the order in which the product reads it."""

    def __init__(self, weight: Tensor) -> None:
        """Raises RuntimeError where the library is missing, KeyError for another dtype."""
        self.kind = KINDS[weight.dtype]
        self.dtype = weight.dtype
        self.shape = (weight.shape[0], weight.shape[1])
        weight = weight.contiguous()
        at = library()
        self._bytes = _SLABS.take(at.packed_bytes(self.kind, *self.shape))
        self.address = self._bytes.data_ptr()
        at.pack(pool(), self.kind, weight.data_ptr(), *self.shape, self.address)

    def __call__(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """x [rows, in_features] of the weight's dtype -> [rows, out_features], of that dtype.

        Sums are float32, rounded once. `wide`: given as float32, with the rounding. Raises ValueError for other x.
        """
        rows, depth = x.shape
        if depth != self.shape[1] or x.dtype is not self.dtype:
            raise ValueError(f"x is [{rows}, {depth}] {x.dtype}, the weight takes [rows, {self.shape[1]}] {self.dtype}")
        x = x.contiguous()
        y = torch.empty(rows, self.shape[0], dtype=torch.float32 if wide else self.dtype)
        at = library()
        at.multiply(pool(), self.kind, wide, x.data_ptr(), self.address, y.data_ptr(), rows, *self.shape)
        return y


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See fused.RmsNorm. `residual` is overwritten by the sum."""
    normed = torch.empty_like(x)
    summed = torch.empty_like(x) if residual is None else residual
    rows, hidden = x.shape
    before = 0 if residual is None else residual.data_ptr()
    at = library()
    job = _NORM.pack(x.data_ptr(), before, weight.data_ptr(), normed.data_ptr(), summed.data_ptr(), rows, hidden, eps)
    at.norm(pool(), KINDS[x.dtype], job)
    return normed, summed


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See fused.SiluAndMul."""
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2, dtype=gate_up.dtype)
    at = library()
    at.gate(pool(), KINDS[gate_up.dtype], _GATE.pack(gate_up.data_ptr(), out.data_ptr(), rows, width // 2))
    return out


def rope_and_cache(
    qkv: Tensor, angles: Tensor, cache: KVCache, slot_mapping: Tensor, heads: int, kv_heads: int
) -> Tensor:
    """See fused.RopeAndCache. The cache is new_cache's for this implementation."""
    rows, _, head_dim = qkv.shape
    query = torch.empty(rows, heads, head_dim, dtype=qkv.dtype)
    at = library()
    job = _ROPE.pack(
        qkv.data_ptr(),
        angles.data_ptr(),
        slot_mapping.data_ptr(),
        query.data_ptr(),
        cache.keys.data_ptr(),
        cache.values.data_ptr(),
        rows,
        slot_mapping.shape[0],
        heads,
        kv_heads,
        head_dim,
        cache.keys.shape[1],
    )
    at.rope(pool(), KINDS[qkv.dtype], job)
    return query


def attention(
    query: Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    *,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """See contract.AttentionFunction. The cache is new_cache's. Raises ValueError for tensors with gaps."""
    _, block_size, kv_heads, head_dim = cache.keys.shape
    check_cache(cache, query.dtype)
    if not query.is_contiguous() or not out.is_contiguous():
        raise ValueError("the native attention needs queries and results without gaps")
    table = metadata.block_table
    at = library()
    job = _ATTENTION.pack(
        query.data_ptr(),
        cache.keys.data_ptr(),
        cache.values.data_ptr(),
        out.data_ptr(),
        metadata.query_start.data_ptr(),
        metadata.context_len.data_ptr(),
        table.data_ptr(),
        len(metadata.query_lens),
        table.shape[1],
        query.shape[1],
        kv_heads,
        head_dim,
        block_size,
        window or 0,
        scale,
    )
    at.attention(pool(), KINDS[query.dtype], job)


def check_cache(cache: KVCache, dtype: torch.dtype) -> None:
    head_dim = cache.keys.shape[3]
    if cache.keys.stride(1) != 1 or cache.values.stride(1) != head_dim or cache.keys.dtype is not dtype:
        raise ValueError("the native attention reads a cache that new_cache laid out for it")
