"""Writing keys and values into a paged cache, in 8 bits where it has scales.

Each token and KV head has a scale of its own, so that a large key costs no other its digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leokernels.contract import KVCache

EIGHT_BIT = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # the largest stored value


def write_kv(key: Tensor, value: Tensor, cache: KVCache, slot_mapping: Tensor) -> None:
    """Put the T tokens' `key` and `value` [T, kv_heads, head_dim] into their slots, quantized if the cache has scales.

    A slot of -1 is padding: nothing is written.
    """
    if slot_mapping.device.type != "cpu" or int(slot_mapping.min()) < 0:
        kept = slot_mapping >= 0
        key, value, slot_mapping = key[kept], value[kept], slot_mapping[kept]
    block_size = cache.keys.shape[1]
    block = slot_mapping // block_size
    offset = slot_mapping % block_size
    _put(key, cache.keys, cache.key_scales, block, offset)
    _put(value, cache.values, cache.value_scales, block, offset)


def _put(x: Tensor, pages: Tensor, scales: Tensor | None, block: Tensor, offset: Tensor) -> None:
    if scales is None:
        pages[block, offset] = x.to(pages.dtype)
    else:
        pages[block, offset], scales[block, offset] = quantize(x, pages.dtype)


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [..., head_dim] -> what is stored, of `dtype` and the same shape, and its scales [...] float32.

    x is about `stored * scale`: the largest element of a row is stored as the largest of `dtype`, the others in
    proportion, rounded to the nearest, ties to even. A row of zeros has a scale of 1.
    """
    largest = EIGHT_BIT[dtype]
    wide = x.float()
    scale = wide.abs().amax(-1) / largest
    scale = torch.where(scale > 0, scale, 1.0)
    steps = (wide / scale[..., None]).clamp(-largest, largest)
    return (steps.round() if dtype is torch.int8 else steps).to(dtype), scale
