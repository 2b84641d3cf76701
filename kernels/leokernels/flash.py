"""Attention by flash-attn, the package of FlashAttention's authors: both of its entry points to paged caches.

Decode rows go to `flash_attn_with_kvcache`, which splits a context among the GPU's multiprocessors; how it splits them
depends on all rows of the step, and with it the last bits of the sums. The other rows go to `flash_attn_varlen_func`.
Both read pages of a multiple of 256 tokens, in float16 or bfloat16, on GPUs of compute capability 8.0 or more. Past a
row's end the library masks the values too; before a window's beginning they have to be finite.

From some version on (see its issue 2711) a call reads the longest context back from the GPU. So it may wait for the
GPU, and it is not captured into a CUDA graph.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from leokernels.contract import AttentionMetadata, KVCache
from leokernels.installed import accepts, obstacle_to_import
from leokernels.ragged import ragged

ENTRY_POINTS = ("flash_attn_varlen_func", "flash_attn_with_kvcache")


def missing() -> str | None:
    """What of the package is missing here, or None."""
    obstacle = obstacle_to_import("flash_attn", "flash-attn")
    if obstacle is not None:
        return obstacle
    library = importlib.import_module("flash_attn")
    if all(accepts(getattr(library, name, None), "block_table") for name in ENTRY_POINTS):
        return None
    return "this flash-attn reads no paged cache; flash-attn 2.8 does"


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
    library = importlib.import_module("flash_attn")
    common: dict[str, Any] = {"softmax_scale": scale, "causal": True}
    if window is not None:
        common["window_size"] = (window - 1, 0)  # keys before and after a query's own
    count = metadata.num_decode
    if count:
        rows = ragged(metadata, decode=True)
        mixed = library.flash_attn_with_kvcache(
            query[:count, None],
            cache.keys,
            cache.values,
            cache_seqlens=rows.context_len,
            block_table=rows.block_table,
            **common,
        )
        out[:count] = mixed[:, 0]
    if count < len(metadata.query_lens):
        rows = ragged(metadata, decode=False)
        if accepts(library.flash_attn_varlen_func, "num_splits"):
            common["num_splits"] = 1  # ragged rows that are split come out wrong
        out[count:] = library.flash_attn_varlen_func(
            query[count:],
            cache.keys,
            cache.values,
            rows.query_start,
            rows.key_start,
            rows.max_query,
            rows.max_context,
            block_table=rows.block_table,
            **common,
        )
