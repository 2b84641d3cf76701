"""The CPU's own kernels, in C++: the matrix product, attention, and what lies between the products.

The library is compiled when the package is built (build.py), for each instruction set apart; which one is loaded is
decided here, by the processor. Its functions are called through ctypes with addresses, and share a pool of threads, as
many as torch has unless `use_threads` says otherwise. One thread at a time may call them.

A row's bits depend on nothing but the row: neither on what else is in the batch nor on how many threads there are.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokernels.contract import AttentionMetadata, KVCache
from leokernels.native.build import library

VERSION = 4  # of the functions' signatures, as the library says it
KINDS = {torch.float32: 0, torch.bfloat16: 1}
HEAD_DIMS = tuple(range(32, 257, 32))
BLOCK_MULTIPLE = 16

# The structures of leonative.h, field by field.
_NORM = struct.Struct("@5P2qf")
_GATE = struct.Struct("@2P2q")
_ROPE = struct.Struct("@6P6q")
_ATTENTION = struct.Struct("@7P7qf")


@cache
def variant() -> str | None:
    """Which library this processor takes; None: none is made for it."""
    return variant_of(_processor())


@dataclass(frozen=True, slots=True)
class Processor:
    """What the system says of it."""

    vendor: str
    flags: frozenset[str]


def variant_of(processor: Processor) -> str | None:
    """The fastest of the variants that it can run.

    AMD multiplies pairs of bfloat16 at twice the rate of float32; Intel at the same, and then float32 loses nothing.
    """
    flags = processor.flags
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"} <= flags:
        return "avx512pairs" if "avx512_bf16" in flags and processor.vendor == "AuthenticAMD" else "avx512"
    if {"avx2", "fma"} <= flags:
        return "avx2"
    return "base" if "asimd" in flags else None


@cache
def _processor() -> Processor:
    """Of this machine, by Linux; elsewhere nothing is known."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    fields = dict(part.partition(":")[::2] for part in reversed(lines))
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return Processor(
        named.get("vendor_id", ""), frozenset(named.get("flags", "").split() + named.get("Features", "").split())
    )


def has_matrix_units() -> bool:
    """Whether the processor multiplies tiles of bfloat16 (AMX), which oneDNN uses and this library does not."""
    return "amx_bf16" in _processor().flags


@cache
def missing() -> str | None:
    """Why the library cannot be used here, or None."""
    name = variant()
    if name is None:
        return "it is made for x86-64 with AVX2 or AVX-512 and for 64-bit Arm"
    file = _file(name)
    if not file.exists():
        return "it was not compiled when this package was built (no C++ compiler)"
    try:
        found = ctypes.CDLL(str(file))
        version = found.leo_version()
    except (OSError, AttributeError) as error:
        return f"it cannot be loaded: {error}"
    return None if version == VERSION else f"it is of another version ({version}, not {VERSION}): build it again"


def _file(name: str) -> Path:
    return Path(__file__).with_name(library(name))


@dataclass(frozen=True, slots=True)
class _Library:
    """The functions."""

    pool_new: Callable[[int], int]
    packed_bytes: Callable[..., int]
    pack: Callable[..., None]
    multiply: Callable[..., None]
    draw: Callable[..., None]
    norm: Callable[..., None]
    gate: Callable[..., None]
    rope: Callable[..., None]
    attention: Callable[..., None]


@cache
def _library() -> _Library:
    """Loads it. Raises RuntimeError where it is missing."""
    why, name = missing(), variant()
    if why is not None or name is None:
        raise RuntimeError(f"the native library cannot be used: {why}")
    found = ctypes.CDLL(str(_file(name)))
    address, kind, length = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    signatures = {
        "pool_new": (address, [kind]),
        "packed_bytes": (length, [kind, length, length]),
        "pack": (None, [address, kind, address, length, length, address]),
        "multiply": (None, [address, kind, kind, address, address, address, length, length, length]),
    }
    signatures["draw"] = (None, [address, address, length, address, address, address, address, length])
    signatures |= {job: (None, [address, kind, ctypes.c_char_p]) for job in ("norm", "gate", "rope", "attention")}
    functions: dict[str, Callable[..., object]] = {}
    for function, (result, arguments) in signatures.items():
        functions[function] = entry = getattr(found, f"leo_{function}")
        entry.restype, entry.argtypes = result, arguments
    return _Library(**functions)  # type: ignore[arg-type]


@cache
def _pool_of(threads: int) -> int:
    return _library().pool_new(threads)


def use_threads(count: int | None) -> None:
    """So many threads from now on, whatever torch has; None: as many as torch.

    A process that computes with this library alone leaves torch one thread: torch's spin for a while after each of
    their jobs, on cores that others could use.
    """
    global _threads
    _threads = count


_threads: int | None = None


def _pool() -> int:
    """The address of the threads."""
    return _pool_of(_threads or torch.get_num_threads())


class Packed:
    """A weight [out_features, in_features], float32 or bfloat16, in the order in which the product reads it."""

    def __init__(self, weight: Tensor) -> None:
        """Raises RuntimeError where the library is missing, KeyError for another dtype."""
        self.kind = KINDS[weight.dtype]
        self.dtype = weight.dtype
        self.shape = (weight.shape[0], weight.shape[1])
        weight = weight.contiguous()
        at = _library()
        self._bytes = torch.empty(at.packed_bytes(self.kind, *self.shape), dtype=torch.uint8)
        at.pack(_pool(), self.kind, weight.data_ptr(), *self.shape, self._bytes.data_ptr())

    def __call__(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """x [rows, in_features] of the weight's dtype -> [rows, out_features], of that dtype.

        Sums are float32, rounded once. `wide`: given as float32, with the rounding. Raises ValueError for other x.
        """
        rows, depth = x.shape
        if depth != self.shape[1] or x.dtype is not self.dtype:
            raise ValueError(f"x is [{rows}, {depth}] {x.dtype}, the weight takes [rows, {self.shape[1]}] {self.dtype}")
        x = x.contiguous()
        y = torch.empty(rows, self.shape[0], dtype=torch.float32 if wide else self.dtype)
        at = _library()
        at.multiply(_pool(), self.kind, wide, x.data_ptr(), self._bytes.data_ptr(), y.data_ptr(), rows, *self.shape)
        return y


def draw(
    logits: Tensor, rows: NDArray[np.int64], temperatures: NDArray[np.float32], uniforms: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Draw an id for each of `rows` [S] of logits [R, V] float32: softmax at its temperature, inverted at its uniform.

    All [S] and contiguous. The first id whose cumulative weight, in the order of ids, exceeds uniform * total; one of
    weight 0 is never drawn. Rows need a finite largest logit. Raises ValueError for logits of another kind.
    """
    if logits.dtype is not torch.float32 or not logits.is_contiguous() or logits.device.type != "cpu":
        raise ValueError("native drawing takes float32 logits on a CPU, without gaps")
    ids = np.empty(len(rows), dtype=np.int64)
    _library().draw(
        _pool(),
        logits.data_ptr(),
        logits.shape[1],
        np.ascontiguousarray(rows, dtype=np.int64).ctypes.data,
        np.ascontiguousarray(temperatures, dtype=np.float32).ctypes.data,
        np.ascontiguousarray(uniforms, dtype=np.float64).ctypes.data,
        ids.ctypes.data,
        len(rows),
    )
    return ids


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See fused.RmsNorm. `residual` is overwritten by the sum."""
    normed = torch.empty_like(x)
    summed = torch.empty_like(x) if residual is None else residual
    rows, hidden = x.shape
    before = 0 if residual is None else residual.data_ptr()
    at = _library()
    job = _NORM.pack(x.data_ptr(), before, weight.data_ptr(), normed.data_ptr(), summed.data_ptr(), rows, hidden, eps)
    at.norm(_pool(), KINDS[x.dtype], job)
    return normed, summed


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See fused.SiluAndMul."""
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2, dtype=gate_up.dtype)
    at = _library()
    at.gate(_pool(), KINDS[gate_up.dtype], _GATE.pack(gate_up.data_ptr(), out.data_ptr(), rows, width // 2))
    return out


def rope_and_cache(
    qkv: Tensor, angles: Tensor, cache: KVCache, slot_mapping: Tensor, heads: int, kv_heads: int
) -> Tensor:
    """See fused.RopeAndCache. The cache is new_cache's for this implementation."""
    rows, _, head_dim = qkv.shape
    query = torch.empty(rows, heads, head_dim, dtype=qkv.dtype)
    at = _library()
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
    at.rope(_pool(), KINDS[qkv.dtype], job)
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
    if cache.keys.stride(1) != 1 or cache.values.stride(1) != head_dim or cache.keys.dtype is not query.dtype:
        raise ValueError("the native attention reads a cache that new_cache laid out for it")
    if not query.is_contiguous() or not out.is_contiguous():
        raise ValueError("the native attention needs queries and results without gaps")
    table = metadata.block_table
    at = _library()
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
    at.attention(_pool(), KINDS[query.dtype], job)
