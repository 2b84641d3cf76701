"""The CPU's own kernels, in C++: the matrix product, attention, and what lies between the products.

The library is compiled when the package is built (build.py), for each instruction set apart; which one is loaded is
decided here, by the processor. Its functions are called through ctypes with addresses, and share a pool of threads, as
many as torch has unless `use_threads` says otherwise. One thread at a time may call them.

A row's bits depend on nothing but the row: neither on what else is in the batch nor on how many threads there are.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokernels.contract import AttentionMetadata, KVCache
from leokernels.native.build import library

VERSION = 6  # of the functions' signatures, as the library says it
KINDS = {torch.float32: 0, torch.bfloat16: 1}
HEAD_DIMS = tuple(range(32, 257, 32))
BLOCK_MULTIPLE = 16

# The structures of leonative.h, field by field.
_NORM = struct.Struct("@5P2qf")
_GATE = struct.Struct("@2P2q")
_ROPE = struct.Struct("@6P6q")
_CHOICE = struct.Struct("@7P3q")
_ATTENTION = struct.Struct("@7P7qf")
_LAYER = struct.Struct("@8P")
_NETWORK = struct.Struct("@4P10q2f")
_FORWARD = struct.Struct("@9P4q")


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
    mask: Callable[..., None]
    choose: Callable[..., None]
    norm: Callable[..., None]
    gate: Callable[..., None]
    rope: Callable[..., None]
    attention: Callable[..., None]
    forward: Callable[..., int]
    forward_bytes: Callable[..., int]


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
    signatures["mask"] = (None, [address, address, length, address, address, length, address, length])
    signatures["choose"] = (None, [address, ctypes.c_char_p])
    signatures |= {job: (None, [address, kind, ctypes.c_char_p]) for job in ("norm", "gate", "rope", "attention")}
    text = ctypes.c_char_p
    signatures |= {"forward": (kind, [address, kind, text, text]), "forward_bytes": (length, [kind, text, length])}
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
        self.address = self._bytes.data_ptr()
        at.pack(_pool(), self.kind, weight.data_ptr(), *self.shape, self.address)

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
        at.multiply(_pool(), self.kind, wide, x.data_ptr(), self.address, y.data_ptr(), rows, *self.shape)
        return y


def mask(logits: Tensor, rows: NDArray[np.int64], slots: NDArray[np.int64], words: NDArray[np.int32]) -> None:
    """Set to -inf what may not come next, in `rows` [S] of logits [R, V] float32, in place.

    `words` [slots, W]: id i of the row is allowed if bit `i % 32` of word `i // 32` of its row of `slots` [S] is set;
    ids past the last word are not. Raises ValueError for logits or words of another kind.
    """
    _check_logits(logits)
    _check_words(words)
    rows, slots = np.ascontiguousarray(rows, dtype=np.int64), np.ascontiguousarray(slots, dtype=np.int64)
    places = (rows.ctypes.data, slots.ctypes.data, len(rows))
    _library().mask(_pool(), logits.data_ptr(), logits.shape[1], *places, words.ctypes.data, words.shape[1])


def _check_logits(logits: Tensor) -> None:
    if logits.dtype is not torch.float32 or not logits.is_contiguous() or logits.device.type != "cpu":
        raise ValueError("native sampling takes float32 logits on a CPU, without gaps")


def _check_words(words: NDArray[np.int32]) -> None:
    if words.dtype != np.int32 or not words.flags.c_contiguous:
        raise ValueError("native masks are int32, without gaps")


def choose(
    logits: Tensor,
    temperatures: NDArray[np.float32],
    uniforms: NDArray[np.float64],
    masks: tuple[NDArray[np.int64], NDArray[np.int32]] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest of each row of logits [R, V] float32, NaN where one is, and the id that is chosen; both [R].

    Where the temperature [R] is 0, the lowest id of the largest logit. Else a draw: softmax at the temperature, and the
    first id whose cumulative weight, in the order of ids, exceeds uniform * total; one of weight 0 is never drawn.
    Without a meaning where the largest is not finite. `masks`: [R] the row of a row's words, or -1, and the words
    [slots, W] as in `mask`. Raises ValueError for arrays of another kind.
    """
    _check_logits(logits)
    rows, columns = logits.shape
    temperatures = np.ascontiguousarray(temperatures, dtype=np.float32)
    uniforms = np.ascontiguousarray(uniforms, dtype=np.float64)
    if not len(temperatures) == len(uniforms) == rows:
        raise ValueError(f"{rows} rows take as many temperatures and uniforms")
    slots, words, size = 0, 0, 0
    if masks is not None:
        places = np.ascontiguousarray(masks[0], dtype=np.int64)
        _check_words(masks[1])
        if len(places) != rows or places.max(initial=-1) >= len(masks[1]):
            raise ValueError(f"each of {rows} rows takes one of {len(masks[1])} masks, or none")
        slots, words, size = places.ctypes.data, masks[1].ctypes.data, masks[1].shape[1]
    peaks, ids = np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.int64)
    given = (logits.data_ptr(), temperatures.ctypes.data, uniforms.ctypes.data, slots, words)
    job = _CHOICE.pack(*given, peaks.ctypes.data, ids.ctypes.data, rows, columns, size)
    _library().choose(_pool(), job)
    return peaks, ids


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
    _check_cache(cache, query.dtype)
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


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Of one layer: norms [hidden], and the products' weights, fused as leoserve.model.llama has them."""

    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: Packed
    output: Packed
    gate_up: Packed
    down: Packed

    def addresses(self) -> tuple[int, ...]:
        norms = self.attention_norm.data_ptr(), self.mlp_norm.data_ptr()
        return (*norms, *(packed.address for packed in (self.qkv, self.output, self.gate_up, self.down)))


class Network:
    """A network of the Llama family from the tokens to the last norm, in one call: the kernels above one after the
    other, with nothing between them. Its numbers are theirs, bit by bit."""

    def __init__(
        self,
        embedding: Tensor,
        angles: Tensor,
        layers: Sequence[LayerWeights],
        norm: Tensor,
        *,
        heads: int,
        kv_heads: int,
        eps: float,
        window: int | None,
    ) -> None:
        """embedding [vocab, hidden], angles [positions, 2, ..., head_dim / 2] float32, norm [hidden], without gaps."""
        self.dtype = embedding.dtype
        self.hidden = embedding.shape[1]
        self._kept = (embedding, angles, tuple(layers), norm)
        head_dim = 2 * angles.shape[-1]
        self._ranges = (len(embedding), len(angles))
        self._sizes = (len(layers), self.hidden, layers[0].down.shape[1], heads, kv_heads, head_dim)
        self._told = (window or 0, eps, head_dim**-0.5)
        self._cache: Sequence[KVCache] | None = None
        self._layers: object = None  # the structures that `_network` points to
        self._network = b""
        self._work = torch.empty(0, dtype=torch.uint8)

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: Sequence[KVCache],
        metadata: AttentionMetadata,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """tokens and positions [T] int64, one cache a layer -> hidden [T or W, hidden].

        `wanted` [W] int64, rising: of these tokens only. What lies between the kernels is kept from call to call, as
        large as the largest step took. Raises IndexError for a token or a position that the network does not have.
        """
        if self._cache is not cache:
            self._take(cache)
        kind, count = KINDS[self.dtype], len(tokens)
        outputs = count if wanted is None else len(wanted)
        needed = _library().forward_bytes(kind, self._network, count)
        if needed > len(self._work):
            self._work = torch.empty(0, dtype=torch.uint8)  # first give back
            self._work = torch.empty(needed, dtype=torch.uint8)
        out = torch.empty(outputs, self.hidden, dtype=self.dtype)
        job = _FORWARD.pack(
            tokens.data_ptr(),
            positions.data_ptr(),
            metadata.slot_mapping.data_ptr(),
            metadata.query_start.data_ptr(),
            metadata.context_len.data_ptr(),
            metadata.block_table.data_ptr(),
            0 if wanted is None else wanted.data_ptr(),
            self._work.data_ptr(),
            out.data_ptr(),
            count,
            len(metadata.query_lens),
            metadata.block_table.shape[1],
            outputs,
        )
        if _library().forward(_pool(), kind, self._network, job):
            raise IndexError(f"tokens are below {self._ranges[0]}, positions below {self._ranges[1]}")
        return out

    def _take(self, cache: Sequence[KVCache]) -> None:
        """Take note of where this cache is. Raises ValueError for one that new_cache did not make for this library."""
        embedding, angles, layers, norm = self._kept
        for layer in cache:
            _check_cache(layer, self.dtype)
        places = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache]
        told = b"".join(_LAYER.pack(*of.addresses(), *place) for of, place in zip(layers, places, strict=True))
        self._layers = kept = ctypes.create_string_buffer(told, len(told))
        first = (ctypes.addressof(kept), embedding.data_ptr(), norm.data_ptr(), angles.data_ptr())
        self._network = _NETWORK.pack(*first, *self._ranges, *self._sizes, cache[0].keys.shape[1], *self._told)
        self._cache = cache


def _check_cache(cache: KVCache, dtype: torch.dtype) -> None:
    head_dim = cache.keys.shape[3]
    if cache.keys.stride(1) != 1 or cache.values.stride(1) != head_dim or cache.keys.dtype is not dtype:
        raise ValueError("the native attention reads a cache that new_cache laid out for it")
