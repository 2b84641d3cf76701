"""The matrix product of linear layers: torch's, one for few rows, or one whose rows have the same bits in any batch.

On a CPU torch's keeps that promise by itself from a few rows on. On a GPU its libraries do not: they take their sums in
another order for another number of rows. There Triton's is taken where the promise is asked for. Where it is not, the
few rows of decoding alone have a product of their own on the GPUs on which it was found to be faster than the
library's. Both are imported only where they run.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from leokernels.installed import triton_missing
from leokernels.table import HALF, Place, dtype_name, too_old


class UnsupportedProduct(ValueError):
    """No matrix product that keeps the promise asked for runs here. One line: what is missing."""


class Multiply(Protocol):
    """`x` [rows, in_features] and `weight` [out_features, in_features] -> x weightᵀ [rows, out_features]."""

    def __call__(self, x: Tensor, weight: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product, and why it is the one to use."""

    name: str
    reason: str
    multiply: Multiply
    kinds_of_rows: tuple[int, ...] = ()  # numbers of rows that have kernels of their own, beside the largest number


def torch_linear(x: Tensor, weight: Tensor, /) -> Tensor:
    """See Multiply."""
    return F.linear(x, weight)


TORCH = Product("torch", "the device's own library, the fastest", torch_linear)
NARROW_ON = 9  # the major compute capability that leokernels.triton.narrow was measured on


def choose_product(place: Place) -> Product:
    """torch's product, with Triton's for few rows where that is faster; Triton's alone where a GPU's rows may not
    depend on each other.

    Raises UnsupportedProduct where that is asked for and Triton's does not run.
    """
    if place.device.type == "cpu":
        return TORCH
    obstacle = _obstacle(place)
    if not place.deterministic:
        return TORCH if obstacle or not _narrow_is_faster(place) else _narrow()
    if obstacle is not None:
        raise UnsupportedProduct(f"no matrix product fits {place}: Triton's is needed, and {obstacle}")
    reason = "deterministic: a row has the same bits whatever runs beside it, which the device's library does not give"
    found = importlib.import_module("leokernels.triton.matmul")
    return Product("triton", reason, found.linear, found.KINDS_OF_ROWS)


def _narrow() -> Product:
    found = importlib.import_module("leokernels.triton.narrow")
    reason = f"this server's own up to {found.MOST_ROWS} rows, where it is the faster, else the device's library"
    return Product("narrow", reason, found.linear, found.KINDS_OF_ROWS)


def _narrow_is_faster(place: Place) -> bool:
    return torch.cuda.get_device_capability(place.device)[0] == NARROW_ON


def _obstacle(place: Place) -> str | None:
    """Why Triton's products do not run there, or None."""
    if place.device.type != "cuda":
        return f"it runs on cuda, not on {place.device.type}"
    if place.dtype not in HALF:
        return f"it has no {dtype_name(place.dtype)}"
    return too_old(place.device, "it", (8, 0)) or triton_missing()
