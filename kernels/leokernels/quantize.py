"""Keys and values in 8 bits: each token and KV head has its own scale, so a large key costs no other its digits."""

from __future__ import annotations

import torch
from torch import Tensor

EIGHT_BIT = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # the largest stored value


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
