"""Writing keys and values into a paged cache, in 8 bits where it has scales.

Each token and KV head has a scale of its own, so that a large key costs no other its digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leokernels.contract import KVCache, indexable

EIGHT_BIT = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # the largest stored value


def write_kv(key: Tensor, value: Tensor, cache: KVCache, slot_mapping: Tensor) -> None:
    """Put the T tokens' `key` and `value` [T, kv_heads, head_dim] into their slots, quantized if the cache has scales.

    A slot of -1 is padding: nothing is written.
    """
    if slot_mapping.device.type != "cpu":
        write_unread(key, value, cache, slot_mapping)
        return
    if int(slot_mapping.min()) < 0:
        kept = slot_mapping >= 0
        key, value, slot_mapping = key[kept], value[kept], slot_mapping[kept]
    _write(key, value, cache, slot_mapping, None)


def write_unread(key: Tensor, value: Tensor, cache: KVCache, slot_mapping: Tensor) -> None:
    """As `write_kv`, without reading a value back: the host of a GPU does not wait, and a CUDA graph can record it.

    Which rows are padding is known to the device alone, so they cannot be left out. They repeat the first row that is
    none: written twice, it is still the same.
    """
    padding = slot_mapping < 0
    first = (~padding).int().argmax()
    rows = torch.where(padding, first, torch.arange(len(slot_mapping), device=slot_mapping.device))
    _write(key[rows], value[rows], cache, slot_mapping[rows].clamp_min(0), padding.all())


def _write(key: Tensor, value: Tensor, cache: KVCache, slots: Tensor, keeps: Tensor | None) -> None:
    """`keeps`, a scalar: True leaves everything as it is."""
    block_size = cache.keys.shape[1]
    place = slots // block_size, slots % block_size
    for x, pages, scales in ((key, cache.keys, cache.key_scales), (value, cache.values, cache.value_scales)):
        if scales is None:
            _put(pages, place, x.to(pages.dtype), keeps)
        else:
            stored, scale = quantize(x, pages.dtype)
            _put(scales, place, scale, keeps)
            _put(indexable(pages), place, indexable(stored), keeps)


def _put(pages: Tensor, place: tuple[Tensor, Tensor], x: Tensor, keeps: Tensor | None) -> None:
    pages[place] = x if keeps is None else torch.where(keeps, pages[place], x)


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
