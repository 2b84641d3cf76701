"""Every kernel, by the real compiler: float32's numbers within the rounding of half precision, bits of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from gpustages.checks import all_checks, compare, rows_that_differ
from gpustages.paged import Heads, written
from gpustages.place import Place
from tests.kernels.paging import CASES, Case

HALF = (torch.bfloat16, torch.float16)
SERVED = [case for case in CASES if case.block_size in (16, 32, 64, 128, 256)]


def gpu(dtype: torch.dtype) -> Place:
    return Place(
        torch.device("cuda", 0), dtype, tiny=False, scratch=Path(), ceilings={}, deadline=time.monotonic() + 3600
    )


CHECKS = [
    pytest.param(check, id=f"{str(dtype).removeprefix('torch.')}: {name}")
    for dtype in HALF
    for name, check in all_checks(gpu(dtype))
]


@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_has_float32s_numbers_and_a_row_the_same_bits_alone_and_among_64(
    check: Callable[[], dict[str, object]],
) -> None:
    torch.manual_seed(0)
    result = check()
    assert result["ok"], result


@pytest.mark.parametrize("kv_dtype", [None, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_attention_agrees_with_the_reference_in_every_case(
    case: Case, dtype: torch.dtype, kv_dtype: torch.dtype | None
) -> None:
    of = Heads(case.heads, case.kv_heads, case.head_dim, case.window)
    make = partial(written, case.rows, of, block_size=case.block_size, device=torch.device("cuda", 0), seed=case.seed)
    problem = make(dtype=dtype, kv_dtype=kv_dtype)
    found = problem.attend("triton", out=torch.full_like(problem.query, float("nan")))
    result = compare(found, problem.wide().attend("reference"))
    assert result["ok"], result
    assert rows_that_differ(problem, found) == []


def test_many_runs_of_the_same_step_have_the_same_bits() -> None:
    rows = [(1000 + number, 1) for number in range(32)] + [(0, 700), (2048, 300)]
    problem = written(
        rows,
        Heads(32, 32, 128),
        block_size=64,
        dtype=torch.bfloat16,
        kv_dtype=None,
        device=torch.device("cuda", 0),
    )
    first = problem.attend("triton")
    for _ in range(50):
        assert torch.equal(problem.attend("triton"), first)
