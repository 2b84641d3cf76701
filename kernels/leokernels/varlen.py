"""Attention by PyTorch's own FlashAttention-2, over ragged batches and paged caches.

Decode rows and the others are two calls, so that a row is computed the same way whatever is beside it. With its default
the function splits long contexts among multiprocessors, and then leaves rows of a paged batch unwritten (PyTorch's
issue 194167). So it is told not to, which costs speed where there are few rows with long contexts. It reads pages of a
multiple of 256 tokens, in float16 or bfloat16, on GPUs of compute capability 8.0 or more. Past a row's end the values
are masked too; before a window's beginning they have to be finite.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from leokernels.contract import AttentionMetadata, KVCache
from leokernels.installed import accepts
from leokernels.ragged import ragged

MODULE = "torch.nn.attention.varlen"
NEEDED = ("out", "window_size", "enable_gqa", "seqused_k", "block_table", "num_splits")


def missing() -> str | None:
    """What of the function is missing in this PyTorch, or None."""
    try:
        function = getattr(importlib.import_module(MODULE), "varlen_attn_out", None)
    except ImportError:
        function = None
    if accepts(function, *NEEDED):
        return None
    return f"torch {torch.__version__} has no attention over paged caches; torch 2.13 has"


def attention(
    query: Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    *,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """See contract.AttentionFunction."""
    function: Any = importlib.import_module(MODULE).varlen_attn_out
    count = metadata.num_decode
    parts = [(True, slice(0, count))] if count else []
    if count < len(metadata.query_lens):
        parts.append((False, slice(count, len(query))))
    for decode, tokens in parts:
        rows = ragged(metadata, decode=decode)
        function(
            out[tokens],
            query[tokens],
            cache.keys,
            cache.values,
            rows.query_start,
            rows.key_start,
            rows.max_query,
            rows.max_context,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),  # keys before and after a query's own
            enable_gqa=query.shape[1] != cache.keys.shape[2],
            seqused_k=rows.context_len,
            block_table=rows.block_table,
            num_splits=1,
        )
