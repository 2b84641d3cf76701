"""A network of the Llama family from the tokens to the last norm, in one call."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leokernels.contract import AttentionMetadata, KVCache
from leokernels.native.layer import Packed, check_cache
from leokernels.native.loading import KINDS, library, pool

# The structures of leonative.h, field by field.
_LAYER = struct.Struct("@8P")
_NETWORK = struct.Struct("@4P10q2f")
_FORWARD = struct.Struct("@9P4q")


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
    """The kernels of layer.py one after the other, with nothing between them. Its numbers are theirs, bit by bit."""

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
        needed = library().forward_bytes(kind, self._network, count)
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
        if library().forward(pool(), kind, self._network, job):
            raise IndexError(f"tokens are below {self._ranges[0]}, positions below {self._ranges[1]}")
        return out

    def _take(self, cache: Sequence[KVCache]) -> None:
        """Take note of where this cache is. Raises ValueError for one that new_cache did not make for this library."""
        embedding, angles, layers, norm = self._kept
        for layer in cache:
            check_cache(layer, self.dtype)
        places = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache]
        told = b"".join(_LAYER.pack(*of.addresses(), *place) for of, place in zip(layers, places, strict=True))
        self._layers = kept = ctypes.create_string_buffer(told, len(told))
        first = (ctypes.addressof(kept), embedding.data_ptr(), norm.data_ptr(), angles.data_ptr())
        self._network = _NETWORK.pack(*first, *self._ranges, *self._sizes, cache[0].keys.shape[1], *self._told)
        self._cache = cache
