"""Attention: one function for every implementation, and the cache as each of them reads it."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor

from leokernels.cache import EIGHT_BIT
from leokernels.contract import AttentionMetadata, KVCache
from leokernels.table import entry


def new_cache(
    num_blocks: int,
    block_size: int,
    kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    implementation: str,
) -> KVCache:
    """One layer's keys and values, as `implementation` reads them; with scales when `dtype` has 8 bits.

    Not initialized: a slot that was not written is never read, and on a host a page takes memory and time only once it
    is used. The strides, and for bfloat16 on a CPU the keys' dtype (float16, of the same size), are the
    implementation's affair: index and copy whole blocks only.
    """
    key_dtype = entry(implementation).key_dtype
    if key_dtype is not None:
        keys = torch.empty(num_blocks, kv_heads, head_dim, block_size, dtype=key_dtype(dtype), device=device)
        values = torch.empty(num_blocks, kv_heads, block_size, head_dim, dtype=dtype, device=device)
        for tensor in (keys, values):
            _in_small_pages(tensor)
        return KVCache(keys.permute(0, 3, 1, 2), values.permute(0, 2, 1, 3))
    shape = (num_blocks, block_size, kv_heads, head_dim)
    keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
    if dtype not in EIGHT_BIT:
        return KVCache(keys, values)
    key_scales, value_scales = (torch.empty(shape[:3], dtype=torch.float32, device=device) for _ in range(2))
    return KVCache(keys, values, key_scales, value_scales)


def _in_small_pages(tensor: Tensor) -> None:
    """Have memory that is not used yet taken page by page of the smallest size.

    The system makes a page when it is first written. Large ones of all layers' tensors fall due in the same step, which
    then stands still for tens of milliseconds (measured: 8 pages of 2 MiB, 50 ms).
    """
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:  # a system that knows no other pages says so, and is right
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_NOHUGEPAGE)


def attention(
    query: Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    *,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
    implementation: str,
) -> Tensor:
    """Attention of the T query tokens over their sequences' cached keys; the contract says which each sees.

    `query` [T, heads, head_dim]; the cache is new_cache's, already holding this step's keys and values. Returns `out`
    [T, heads, head_dim], of the query's dtype. A row's result has the same bits whatever rows are beside it, unless the
    table says otherwise of the implementation.
    """
    out = torch.empty_like(query) if out is None else out
    function = entry(implementation).function
    function(query, cache, metadata, scale=scale, window=window, out=out)
    return out
