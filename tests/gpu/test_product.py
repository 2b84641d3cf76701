"""The deterministic matrix product on tensor cores: torch's numbers, and the same bits for a row in any company."""

from __future__ import annotations

import pytest
import torch

GPU = torch.device("cuda", 0)
WEIGHTS = ((12288, 4096), (4096, 4096), (4096, 11008), (10240, 8192), (1000, 1000))  # N, K: one part of K, 4, 4, 2; odd
COUNTS = (1, 2, 17, 64, 65, 128, 129, 384, 1000)  # tiles of both heights, parts apart and together


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("columns", "depth"), WEIGHTS)
def test_a_row_has_the_same_bits_alone_and_in_any_product(columns: int, depth: int, dtype: torch.dtype) -> None:
    from leokernels.triton.matmul import linear

    generator = torch.Generator(GPU).manual_seed(0)
    x = torch.randn(8192, depth, generator=generator, device=GPU).to(dtype)
    weight = (torch.randn(columns, depth, generator=generator, device=GPU) * depth**-0.5).to(dtype)
    whole = linear(x, weight)
    expected = x[:256].double() @ weight.double().T
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(whole[:256].double(), expected, rtol=eps, atol=2e-5)
    for count in COUNTS:
        for begin in (0, 100, 8192 - count):
            found = linear(x[begin : begin + count], weight)
            assert torch.equal(found, whole[begin : begin + count]), f"{count} rows from {begin} on"
