"""Doubles of the libraries that attend over paged caches on a GPU: their signatures and what they document, in torch.

They refuse what the libraries refuse, and like them they read no key and no value past the end of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Window = tuple[int, int]


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """flash-attn 2.8's, for paged caches."""
    assert block_table is not None
    assert softmax_scale is not None
    check_pages(q, k, v, block_table)
    assert block_table.shape[0] == len(cu_seqlens_q) - 1 == len(cu_seqlens_k) - 1
    contexts = lengths(cu_seqlens_k, max_seqlen_k)
    starts = lengths(cu_seqlens_q, max_seqlen_q)
    assert sum(starts) == len(q)
    window = (window_size[0], 0) if causal else window_size
    return torch.cat(list(rows(q, k, v, starts, contexts, block_table, softmax_scale, window)))


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor:
    """flash-attn 2.8's, for paged caches that hold this step's keys already. q [rows, tokens, heads, head_dim]."""
    assert block_table is not None
    assert cache_seqlens is not None
    assert softmax_scale is not None
    batch, count = q.shape[:2]
    check_pages(q.flatten(0, 1), k_cache, v_cache, block_table)
    assert cache_seqlens.dtype is torch.int32
    assert cache_seqlens.is_contiguous()
    assert cache_seqlens.shape == (batch,) == block_table.shape[:1]
    window = (window_size[0], 0) if causal else window_size
    contexts = cache_seqlens.tolist()
    found = rows(q.flatten(0, 1), k_cache, v_cache, [count] * batch, contexts, block_table, softmax_scale, window)
    return torch.stack(list(found))


def varlen_attn_out(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any | None = None,
    scale: float | None = None,
    window_size: Window = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """torch 2.13's, for paged caches: split contexts leave all rows but the first unwritten."""
    assert block_table is not None
    assert seqused_k is not None
    assert cu_seq_k is not None
    assert scale is not None
    assert out.shape == query.shape
    check_pages(query, key, value, block_table)
    if not enable_gqa and query.shape[1] != key.shape[2]:
        raise ValueError("Expect query and key/value to have the same number of heads")
    counts = lengths(cu_seq_q, max_q)
    assert lengths(cu_seq_k, max_k) == seqused_k.tolist()
    assert seqused_k.dtype is torch.int32
    found = list(rows(query, key, value, counts, seqused_k.tolist(), block_table, scale, window_size))
    if num_splits != 1:
        found[1:] = [torch.full_like(part, float("nan")) for part in found[1:]]
    return out.copy_(torch.cat(found))


def check_pages(query: Tensor, keys: Tensor, values: Tensor, block_table: Tensor) -> None:
    """What these libraries check of their arguments."""
    assert keys.shape == values.shape
    assert keys.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    assert block_table.dtype is torch.int32
    assert query.shape[1] % keys.shape[2] == 0
    assert query.shape[2] == keys.shape[3]
    for tensor in (query, keys, values, block_table):
        assert tensor.stride(-1) == 1, "Input tensor must have contiguous last dimension"


def lengths(starts: Tensor, largest: int) -> list[int]:
    assert starts.dtype is torch.int32
    assert starts.is_contiguous()
    assert starts[0] == 0
    found: list[int] = starts.diff().tolist()
    assert max(found) <= largest
    return found


def rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    counts: list[int],
    contexts: list[int],
    block_table: Tensor,
    scale: float,
    window: Window,
) -> Iterator[Tensor]:
    """Each row's result [count, heads, head_dim]: query i sees the keys from i + shift - left to i + shift + right."""
    share = query.shape[1] // keys.shape[2]
    for row, part in enumerate(query.split(counts)):
        pages = block_table[row, : -(-contexts[row] // keys.shape[1])].long()
        key = keys[pages].flatten(0, 1)[: contexts[row]].repeat_interleave(share, 1).double()
        value = values[pages].flatten(0, 1)[: contexts[row]].repeat_interleave(share, 1).double()
        own = torch.arange(len(part))[:, None] + contexts[row] - len(part)
        distance = torch.arange(contexts[row]) - own
        seen = torch.ones_like(distance, dtype=torch.bool)
        if window[0] >= 0:
            seen &= distance >= -window[0]
        if window[1] >= 0:
            seen &= distance <= window[1]
        scores = torch.einsum("qhd,khd->hqk", part.double(), key) * scale
        shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        value = value.masked_fill(~seen.any(0)[:, None, None], 0)
        yield torch.einsum("hqk,khd->qhd", shares, value).to(query.dtype)


def module(name: str, **contents: Any) -> ModuleType:
    """A module to stand in sys.modules."""
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(contents)
    return made


def flash_attn_module() -> ModuleType:
    return module(
        "flash_attn",
        __version__="2.8.3",
        flash_attn_varlen_func=flash_attn_varlen_func,
        flash_attn_with_kvcache=flash_attn_with_kvcache,
    )
