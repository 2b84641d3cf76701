"""A linear layer, with its weight in the order that the CPU's matrix product reads fastest: native, or oneDNN's.

Elsewhere the product is the one that leokernels chose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leokernels import native
from leokernels.product import Multiply, torch_linear

# Rows of the smallest product whose rows have the same bits as those of a larger one: native from 1 by its making;
# measured, oneDNN's packed from 2. A step of fewer tokens is padded to it, so that an answer does not depend on what
# runs beside it. torch's own product keeps no such promise on every processor.
MIN_ROWS = 1
MIN_ROWS_PACKED = 2
PACKED_FLOAT32 = (2, 12)  # before it, some shapes' packed float32 products have other bits from 16 rows on


class Linear:
    """y = x Wᵀ. The loader fills `weight` [out_features, in_features]; `prepare` may replace it by a packed copy."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        multiply: Multiply = torch_linear,
    ) -> None:
        self.shape = (out_features, in_features)
        self.multiply = multiply
        self.weight: Tensor | None = torch.empty(out_features, in_features, dtype=dtype, device=device)
        self._packed: Tensor | None = None
        self.native: native.Packed | None = None

    def prepare(self) -> None:
        """Pack the weight and free the original, so that both exist for one matrix at a time only."""
        if self.weight is None:
            return
        if can_pack_natively(self.weight):
            self.native = native.Packed(self.weight)
            self.weight = None
        elif can_pack(self.weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
            self.weight = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, in_features] -> [rows, out_features]"""
        if self.native is not None:
            return self.native(x)
        if self._packed is not None:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
            return y
        if self.weight is None:
            raise RuntimeError("a linear layer has neither its weight nor a packed one")
        return self.multiply(x, self.weight)

    def wide(self, x: Tensor) -> Tensor:
        """x [rows, in_features] -> [rows, out_features], rounded to the weight's dtype and given in float32."""
        return self(x).float() if self.native is None else self.native(x, wide=True)


def can_pack_natively(weight: Tensor) -> bool:
    """Whether this server's own product is there for this weight, and faster than oneDNN's."""
    if weight.device.type != "cpu" or weight.dtype not in native.KINDS or native.missing() is not None:
        return False
    return weight.dtype is not torch.bfloat16 or not native.has_matrix_units()


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's packed product is there for this weight and fast: float32, or bfloat16 with hardware for it."""
    if weight.device.type != "cpu" or not _mkldnn_built():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32 and _torch_version() >= PACKED_FLOAT32


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _mkldnn_built() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def min_rows(sample: Tensor) -> int:
    """Rows of the smallest product with weights like this one whose rows have the same bits as in any larger one."""
    return MIN_ROWS_PACKED if not can_pack_natively(sample) and can_pack(sample) else MIN_ROWS


def keeps_rows_apart(dtype: torch.dtype) -> bool:
    """Whether a CPU's linear layers of this dtype give a row the same bits whatever is beside it."""
    return product_of(dtype) != "torch"


def product_of(dtype: torch.dtype) -> str:
    """What multiplies on this CPU: native, oneDNN or torch."""
    sample = torch.empty(1, 1, dtype=dtype)
    return "native" if can_pack_natively(sample) else "oneDNN" if can_pack(sample) else "torch"


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """x [n, ...] with its last row repeated until there are `rows`."""
    missing = rows - x.shape[0]
    return x if missing <= 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
