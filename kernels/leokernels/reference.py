"""The truth: attention in plain torch and float32, row by row, on any device, from caches of any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from leokernels.contract import AttentionMetadata, KVCache, indexable


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
    begin = 0
    for row, (count, context) in enumerate(zip(metadata.query_lens, metadata.context_lens, strict=True)):
        blocks = metadata.block_table[row].long()
        keys = _gather(cache.keys, cache.key_scales, blocks, context)
        values = _gather(cache.values, cache.value_scales, blocks, context)
        out[begin : begin + count] = _attend(query[begin : begin + count].float(), keys, values, scale, window)
        begin += count


def _gather(pages: Tensor, scales: Tensor | None, blocks: Tensor, context: int) -> Tensor:
    """The first `context` slots of a sequence: [context, kv_heads, head_dim] float32."""
    block_size = pages.shape[1]
    used = blocks[: -(-context // block_size)]
    stored = indexable(pages)[used].view(pages.dtype).flatten(0, 1)[:context].float()
    return stored if scales is None else stored * scales[used].flatten(0, 1)[:context, :, None]


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """query [t, heads, dim], keys and values [context, kv_heads, dim] -> [t, heads, dim]; all float32."""
    count, heads, dim = query.shape
    context, kv_heads, _ = keys.shape
    grouped = query.view(count, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("tkgd,ckd->kgtc", grouped, keys) * scale
    key = torch.arange(context, device=query.device)
    position = torch.arange(context - count, context, device=query.device)[:, None]
    visible = key <= position
    if window is not None:
        visible &= key > position - window
    scores.masked_fill_(~visible, float("-inf"))
    values = values.masked_fill(~visible.any(0)[:, None, None], 0)  # zero times NaN is NaN
    mixed = torch.einsum("kgtc,ckd->tkgd", scores.softmax(-1), values)
    return mixed.reshape(count, heads, dim)
