"""A row of a linear layer has the same bits however many rows are beside it, from the smallest product that is used."""

from __future__ import annotations

import pytest
import torch

from leokernels import native
from leoserve.model.linear import (
    Linear,
    can_pack,
    can_pack_natively,
    min_rows,
    pad_rows,
)

CPU = torch.device("cpu")
SIZES = ((64, 256), (768, 2304), (2048, 768), (4096, 2048))


@pytest.mark.parametrize("kind", ["onednn", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_a_row_has_the_same_bits_in_any_product(
    columns: int, rows: int, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = Linear(columns, rows, dtype=dtype, device=CPU)
    assert linear.weight is not None
    weight = linear.weight.copy_(torch.randn(rows, columns, generator=generator))
    if kind == "onednn":
        monkeypatch.setattr(native, "missing", lambda: "for this test")
    if not (can_pack_natively(weight) or can_pack(weight)):
        pytest.skip(f"this processor has no {kind} product of {dtype}")
    least = min_rows(weight)
    linear.prepare()
    x = torch.randn(64, columns, generator=generator).to(dtype)
    whole = linear(x)
    torch.testing.assert_close(whole.float(), x.float() @ weight.float().T, atol=0.05, rtol=0.02)
    for count in (least, 5, 16, 33):
        assert torch.equal(linear(x[:count]), whole[:count]), f"{count} rows"


def test_packing_frees_the_original() -> None:
    linear = Linear(64, 64, dtype=torch.float32, device=CPU)
    assert linear.weight is not None
    packs = can_pack_natively(linear.weight) or can_pack(linear.weight)
    linear.prepare()
    assert (linear.weight is None) is packs


def test_the_product_it_was_given_multiplies_its_weight() -> None:
    calls = []

    def multiply(x: torch.Tensor, weight: torch.Tensor, /) -> torch.Tensor:
        calls.append((x, weight))
        return x

    linear = Linear(4, 4, dtype=torch.float16, device=CPU, multiply=multiply)
    linear.prepare()
    x = torch.zeros(2, 4, dtype=torch.float16)
    assert linear(x) is x
    assert len(calls) == 1
    assert calls[0][1] is linear.weight


def test_rows_are_padded_with_the_last_one() -> None:
    x = torch.tensor([[1.0], [2.0]])
    assert pad_rows(x, 4).flatten().tolist() == [1, 2, 2, 2]
    assert pad_rows(x, 2) is x
    assert pad_rows(x, 1) is x
