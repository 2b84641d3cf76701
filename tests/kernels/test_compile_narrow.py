"""The product for few rows compiles for the GPUs that it is taken on, early and not, and multiplies by tensor cores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.kernels.compiling import REGISTERS, SHARED, Capability, Report, Scenario, reports

HOPPER = (9, 0)
META = torch.device("meta")  # without storage: a host function that looked at a value would fail
SHAPES = ((12288, 4096), (4096, 4096), (4096, 11008), (8192, 28672), (1000, 1000))  # N, K: 7B's and 70B's; ragged
ROWS = (1, 8)  # early, and not


def product(rows: int, columns: int, depth: int, dtype: torch.dtype) -> None:
    from leokernels.triton.narrow import narrow_linear

    narrow_linear(
        torch.empty(rows, depth, dtype=dtype, device=META),
        torch.empty(columns, depth, dtype=dtype, device=META),
    )


def scenarios(capability: Capability) -> Iterator[Scenario]:
    for rows in ROWS:
        for columns, depth in SHAPES:
            yield (
                f"{rows}x{columns}x{depth}",
                lambda rows=rows, columns=columns, depth=depth: product(rows, columns, depth, torch.bfloat16),
            )
        yield f"{rows}, float16", lambda rows=rows: product(rows, 4096, 4096, torch.float16)


@pytest.fixture(scope="module")
def compiled() -> list[Report]:
    return reports(f"{__name__}:{scenarios.__name__}", HOPPER)


def test_it_compiles_without_spilling_and_within_shared_memory(compiled: list[Report]) -> None:
    assert {report.kernel for report in compiled} == {"narrow_kernel"}
    for report in compiled:
        assert report.stack == 0, report
        assert report.registers <= REGISTERS, report
        assert report.shared <= SHARED[HOPPER], report


def test_tensor_cores_multiply(compiled: list[Report]) -> None:
    for report in compiled:
        assert report.multiplies, report
