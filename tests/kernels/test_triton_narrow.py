"""Triton's product for few rows, interpreted, gives float64's products, and asks for nothing outside its weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leokernels.triton import narrow, tiles

DTYPES = [torch.float32, torch.float16]  # the interpreter's bfloat16 is not to be trusted
HOPPER = (9, 0)
SHAPES = [(64, 128), (1, 1), (70, 37), (100, 2060), (130, 4096)]  # N, K: whole, ragged, deep
LEOLM = {  # N, K of 7B's, 13B's, 70B's and Mistral's weights
    "7B": ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (32128, 4096)),
    "13B": ((15360, 5120), (5120, 5120), (27648, 5120), (5120, 13824), (32128, 5120)),
    "70B": ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672), (32128, 8192)),
    "Mistral": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (32128, 4096)),
}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("columns", "depth"), SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_it_is_float64s_product(rows: int, columns: int, depth: int, dtype: torch.dtype) -> None:
    x, weight = draw(rows, depth, dtype=dtype), draw(columns, depth, dtype=dtype, seed=1)
    found = narrow.narrow_linear(x, weight)
    assert found.dtype is dtype
    expected = (x.double() @ weight.double().T).to(dtype)
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6 * depth)


@pytest.mark.parametrize("depth", [37, 2060])
def test_what_lies_past_the_ends_is_neither_read_nor_written(depth: int) -> None:
    """NaN beside x and weight in memory does not reach the product."""
    x, weight = (torch.cat([draw(size, depth), torch.full((70, depth), float("nan"))])[:size] for size in (3, 5))
    assert narrow.narrow_linear(x, weight).isfinite().all()


@pytest.mark.parametrize("rows", [0, 9])
def test_more_rows_are_the_librarys(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(rows, 32), draw(20, 32, seed=1)
    monkeypatch.setattr(narrow, "narrow_linear", lambda x, weight: pytest.fail("not for so many rows"))
    assert torch.equal(narrow.linear(x, weight), F.linear(x, weight))


def test_up_to_8_rows_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "F", None)
    x, weight = draw(8, 32), draw(20, 32, seed=1)
    torch.testing.assert_close(narrow.linear(x, weight), x @ weight.T)


@pytest.mark.parametrize("rows", [0, 9])
def test_numbers_of_rows_that_it_is_not_for_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 8 of them, not {rows}"):
        narrow.narrow_linear(draw(rows, 8), draw(4, 8))


def test_tensors_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="without gaps"):
        narrow.narrow_linear(draw(8, 2).T, draw(4, 8))
    with pytest.raises(ValueError, match="without gaps"):
        narrow.narrow_linear(draw(2, 8), draw(8, 4).T)


def test_steps_of_few_rows_start_early_where_that_was_measured_and_nowhere_else() -> None:
    assert [tiles.early(HOPPER, rows) for rows in (1, 4, 5, 8, 300)] == [True, True, False, False, False]
    for capability in (tiles.INTERPRETER, (8, 0), (8, 9), (10, 0), (12, 0)):
        assert not tiles.early(capability, 1)


def test_its_kinds_of_rows_are_all_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """After them, no number of rows meets a kernel with other constants."""
    launched: set[tuple[object, ...]] = set()

    class Launches:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *tensors, **constants: launched.add(tuple(sorted(constants.items())))

    monkeypatch.setattr(narrow, "narrow_kernel", Launches())
    monkeypatch.setattr(tiles, "capability", lambda device: HOPPER)
    for columns, depth in LEOLM["7B"]:
        weight = torch.empty(columns, depth, device="meta")
        for rows in narrow.KINDS_OF_ROWS:
            narrow.linear(torch.empty(rows, depth, device="meta"), weight)
        known = set(launched)
        for rows in range(1, narrow.MOST_ROWS + 1):
            narrow.linear(torch.empty(rows, depth, device="meta"), weight)
        assert launched == known
