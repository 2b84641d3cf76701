"""The deterministic product compiles for every GPU it is made for, and multiplies alike whatever the number of rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from tests.kernels.compiling import REGISTERS, SHARED, Capability, Report, Scenario, reports

REGISTER_FILE = 65_536  # of a multiprocessor; a program's threads share it
META = torch.device("meta")  # without storage: a host function that looked at a value would fail
ROWS = (1, 128, 8192)  # a few rows; a tile of many, its parts apart; all parts by one program
NETWORKS = {  # N, K of the weights
    "7B": ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (32128, 4096)),
    "13B": ((15360, 5120), (5120, 5120), (27648, 5120), (5120, 13824), (32128, 5120)),
    "70B": ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672), (32128, 8192)),
    "ragged": ((1000, 1000), (100, 2060)),
}
GATED = {"7B": (0, 3), "70B": (0,), "ragged": (0, 1)}  # places in NETWORKS: one of each kind of loop


def product(rows: int, columns: int, depth: int, dtype: torch.dtype = torch.bfloat16) -> None:
    from leokernels.triton.matmul import linear

    linear(
        torch.empty(rows, depth, dtype=dtype, device=META),
        torch.empty(columns, depth, dtype=dtype, device=META),
    )


def scenarios_of(network: str, columns: int, depth: int) -> Iterator[Scenario]:
    for rows in ROWS:
        yield f"{network} {rows}x{columns}x{depth}", lambda rows=rows: product(rows, columns, depth)


def scenarios(capability: Capability) -> Iterator[Scenario]:
    for network, places in GATED.items():
        for place in places:
            yield from scenarios_of(network, *NETWORKS[network][place])
    yield "float16", lambda: product(1, 4096, 4096, torch.float16)


def all_scenarios(capability: Capability) -> Iterator[Scenario]:
    for network, shapes in NETWORKS.items():
        for shape in shapes:
            yield from scenarios_of(network, *shape)


def check(compiled: list[Report], capability: Capability) -> None:
    assert {report.kernel for report in compiled} == {"linear_kernel", "add_parts_kernel"}
    for report in compiled:
        assert report.stack == 0, report
        assert report.registers <= REGISTERS, report
        assert report.registers * report.warps * 32 <= REGISTER_FILE, report
        assert report.shared <= SHARED[capability], report


@pytest.mark.parametrize("capability", SHARED, ids=str)
def test_it_compiles_without_spilling_and_multiplies_by_the_same_instructions_in_any_number_of_rows(
    capability: Capability,
) -> None:
    compiled = reports(f"{__name__}:{scenarios.__name__}", capability)
    check(compiled, capability)
    multiplies = {
        tuple(report.multiplies)
        for report in compiled
        if report.kernel == "linear_kernel" and report.scenario != "float16"
    }
    assert len(multiplies) == 1
    assert len(multiplies.pop()) == 1


if __name__ == "__main__":
    for target in [tuple(map(int, name.split("."))) for name in sys.argv[1:]] or SHARED:
        found = reports(f"tests.kernels.test_compile_matmul:{all_scenarios.__name__}", target)
        for report in found:
            print(target, report)
        check(found, target)
