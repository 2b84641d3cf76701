"""What a layer does between its matrix products: one set of functions, in plain torch, in Triton or in C++.

The torch versions are the truth, and what a CPU runs. Triton's (leokernels.triton.fused) read and write each number
once instead of several times; they have the same signatures and are imported only where they run.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from leokernels import native
from leokernels.cache import write_kv
from leokernels.contract import KVCache
from leokernels.installed import triton_missing
from leokernels.table import Place, too_old


class RmsNorm(Protocol):
    """Adds `x` to what the layers have summed up so far, and norms the sum.

    `x` and `residual` [rows, hidden]; no residual: the sum is x. Returns the normed sum, float32 up to the weight, and
    the sum, both of the dtype of x. `residual` may be overwritten.
    """

    def __call__(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


class RopeAndCache(Protocol):
    """Rotates queries and keys by their positions and puts keys and values into the cache.

    `qkv` [rows, heads + 2 * kv_heads, head_dim]; `angles` [rows, 2, 1, head_dim / 2] float32, cosine and sine; of the
    rows the first `len(slot_mapping)` are written, except where a slot is -1. Returns the queries
    [rows, heads, head_dim], contiguous.
    """

    def __call__(
        self, qkv: Tensor, angles: Tensor, cache: KVCache, slot_mapping: Tensor, heads: int, kv_heads: int
    ) -> Tensor: ...


class SiluAndMul(Protocol):
    """`gate_up` [rows, 2 * inner] -> silu(gate) * up [rows, inner]."""

    def __call__(self, gate_up: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Fused:
    """A set of these functions, and why it is the one to use."""

    name: str
    reason: str
    rms_norm: RmsNorm
    rope_and_cache: RopeAndCache
    silu_and_mul: SiluAndMul


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See RmsNorm."""
    summed = x if residual is None else residual + x
    wide = summed.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype), summed


def rope_and_cache(
    qkv: Tensor, angles: Tensor, cache: KVCache, slot_mapping: Tensor, heads: int, kv_heads: int
) -> Tensor:
    """See RopeAndCache."""
    count = slot_mapping.shape[0]
    rotated = rotate(qkv[:, : heads + kv_heads], angles)
    write_kv(rotated[:count, heads:], qkv[:count, heads + kv_heads :], cache, slot_mapping)
    return rotated[:, :heads].contiguous()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: x [rows, heads, head_dim] by angles [rows, 2, 1, head_dim / 2].

    Element `i` is paired with `i + head_dim / 2`. In float32, rounded once to the dtype of x.
    """
    cos, sin = angles.unbind(1)  # each [rows, 1, head_dim / 2]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See SiluAndMul."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


TORCH = Fused("torch", "plain torch", rms_norm, rope_and_cache, silu_and_mul)


def triton_functions(reason: str) -> Fused:
    """Triton's set. Raises ImportError without Triton."""
    found = importlib.import_module("leokernels.triton.fused")
    return Fused("triton", reason, found.rms_norm, found.rope_and_cache, found.silu_and_mul)


NATIVE = Fused(
    "native", "in C++, for the cache of native attention", native.rms_norm, native.rope_and_cache, native.silu_and_mul
)


def choose_fused(place: Place, attention: str) -> Fused:
    """Triton's functions on a GPU, native ones beside native `attention`; else torch's with the reason."""
    if attention == NATIVE.name:
        return NATIVE
    obstacle = _obstacle(place)
    if obstacle is None:
        return triton_functions("each number is read once and written once")
    return replace(TORCH, reason=f"plain torch; Triton's do not fit: {obstacle}")


def _obstacle(place: Place) -> str | None:
    if place.device.type != "cuda":
        return f"they run on cuda, not on {place.device.type}"
    if place.head_dim & (place.head_dim - 1):
        return f"they have head sizes that are powers of 2, not {place.head_dim}"
    least = (8, 9) if place.kv_dtype is torch.float8_e4m3fn else (8, 0)
    return too_old(place.device, "rounding to float8" if least == (8, 9) else "they", least) or triton_missing()
