"""Triton's linear layer gives torch's products, and each of its rows has the same bits however many there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from leokernels.triton import matmul, tiles

DTYPES = [torch.float32, torch.float16]  # the interpreter's bfloat16 is not to be trusted
TILE = tiles.product(tiles.INTERPRETER, 1)
DEEP = 2 * tiles.STEPS_A_PART * TILE.depth  # enough to be summed up in two parts
SHAPES = [  # N, K
    (TILE.columns, TILE.depth),
    (1, 1),
    (70, 37),
    (33, DEEP),
    (5, 2 * DEEP + 7),
]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parts(columns: int, depth: int) -> int:
    return tiles.product_parts(TILE, columns, depth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth"), SHAPES)
@pytest.mark.parametrize("rows", [1, TILE.rows, TILE.rows + 1])
def test_it_is_torchs_product(rows: int, columns: int, depth: int, dtype: torch.dtype) -> None:
    x, weight = draw(rows, depth, dtype=dtype), draw(columns, depth, dtype=dtype, seed=1)
    found = matmul.linear(x, weight)
    assert found.dtype is dtype
    expected = (x.double() @ weight.double().T).to(dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=2 * eps, atol=1e-6 * depth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth"), [(70, 37), (33, DEEP), (5, 2 * DEEP)])
def test_a_row_has_the_same_bits_alone_and_among_any_number_at_any_place(
    columns: int, depth: int, dtype: torch.dtype
) -> None:
    x, weight = draw(130, depth, dtype=dtype), draw(columns, depth, dtype=dtype, seed=1)
    whole = matmul.linear(x, weight)
    for count in (1, 2, 17, 64):
        assert torch.equal(matmul.linear(x[:count], weight), whole[:count]), f"the first {count} rows"
    for place in (5, 129):
        assert torch.equal(matmul.linear(x[place : place + 1], weight), whole[place : place + 1]), f"row {place}"


@pytest.mark.parametrize("columns", [33, 70])
def test_parts_added_by_one_program_and_by_several_have_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    x, weight = draw(18, 2 * DEEP + 7), draw(columns, 2 * DEEP + 7, seed=1)
    assert parts(*weight.shape) == 4
    apart = matmul.linear(x, weight)
    split = monkeypatch.setattr
    split(tiles, "product_parts", lambda tile, columns, depth: 4)
    split(tiles, "FEW_PROGRAMS", 1)
    assert torch.equal(matmul.linear(x, weight), apart)
    split(tiles, "product_parts", lambda tile, columns, depth: 1)
    assert not torch.equal(matmul.linear(x, weight), apart), "the parts shape the sums, or this shows nothing"


def test_what_lies_past_the_ends_is_neither_read_nor_written() -> None:
    """NaN beside x and weight in memory does not reach the product, and what is beside it stays."""
    rows, columns, depth = 3, 5, 2 * DEEP + 7
    x, weight = (
        torch.cat([draw(size, depth), torch.full((40, depth), float("nan"))])[:size] for size in (rows, columns)
    )
    assert matmul.linear(x, weight).isfinite().all()


def test_many_tiles_of_rows_in_bands_are_each_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "PRODUCT_BAND", 2)
    x, weight = draw(5 * TILE.rows - 3, 8), draw(3 * TILE.columns, 8, seed=1)
    torch.testing.assert_close(matmul.linear(x, weight), x @ weight.T)


def test_no_rows_give_none() -> None:
    assert matmul.linear(draw(0, 8), draw(4, 8)).shape == (0, 4)


def test_tensors_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="without gaps"):
        matmul.linear(draw(8, 2).T, draw(4, 8))
    with pytest.raises(ValueError, match="without gaps"):
        matmul.linear(draw(2, 8), draw(8, 4).T)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)], ids=str)
def test_how_a_sum_is_taken_does_not_depend_on_the_number_of_rows(capability: tuple[int, int]) -> None:
    found = [tiles.product(capability, rows) for rows in (1, 64, 65, 8192)]
    assert len({(tile.columns, tile.depth) for tile in found}) == 1
    assert len({tile.rows // tile.warps for tile in found}) == 1
    for columns, depth in ((4096, 4096), (4096, 11008), (22016, 4096)):
        assert len({tiles.product_parts(tile, columns, depth) for tile in found}) == 1


def test_narrow_weights_are_split_until_one_row_keeps_a_gpu_busy() -> None:
    tile = tiles.product((9, 0), 1)
    assert tiles.product_parts(tile, 4096, 4096) == 4
    assert tiles.product_parts(tile, 4096, 11008) == 4
    assert tiles.product_parts(tile, 12288, 4096) == 1
    assert tiles.product_parts(tile, 128, 1024) == 1, "too short to be split"


class Launches:
    """Stands in for a kernel and keeps the constants that it is launched with."""

    def __init__(self) -> None:
        self.constants: set[tuple[object, ...]] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *tensors, **constants: self.constants.add(tuple(sorted(constants.items())))


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0)], ids=str)
@pytest.mark.parametrize(("columns", "depth"), [(12288, 4096), (4096, 11008), (8192, 8192), (100, 2060)])
def test_nothing_is_left_to_be_compiled_after_the_kinds_of_rows_and_the_most_rows(
    monkeypatch: pytest.MonkeyPatch, columns: int, depth: int, capability: tuple[int, int]
) -> None:
    def launched(numbers: tuple[int, ...]) -> list[set[tuple[object, ...]]]:
        kernels = Launches(), Launches()
        monkeypatch.setattr(matmul, "linear_kernel", kernels[0])
        monkeypatch.setattr(matmul, "add_parts_kernel", kernels[1])
        weight = torch.empty(columns, depth, device="meta")
        for rows in numbers:
            matmul.linear(torch.empty(rows, depth, device="meta"), weight)
        return [kernel.constants for kernel in kernels]

    monkeypatch.setattr(tiles, "capability", lambda device: capability)
    for most in (4, 64, 100, 400, 8192):
        every = (1, 2, 63, 64, 65, 100, 128, 129, 256, 300, 383, 385, 512, 3000, most)
        compiled = launched((*matmul.KINDS_OF_ROWS, most))
        for found, known in zip(launched(tuple(rows for rows in every if rows <= most)), compiled, strict=True):
            assert found <= known
