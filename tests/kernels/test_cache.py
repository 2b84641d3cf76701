"""Eight-bit keys and values: each token and head keeps its own range, and what comes back is as near as can be."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from leokernels import new_cache, write_kv
from leokernels.cache import EIGHT_BIT, quantize, write_unread
from tests.kernels.paging import CASES, CPU, Case, Inputs, random_inputs, run_case

HALF_STEP = {torch.int8: 0.5 / 127, torch.float8_e4m3fn: 2**-4}  # of the largest; of each element


def restored(x: Tensor, dtype: torch.dtype) -> Tensor:
    stored, scales = quantize(x, dtype)
    assert stored.dtype is dtype
    assert scales.dtype is torch.float32
    return stored.float() * scales[..., None]


@pytest.mark.parametrize("dtype", EIGHT_BIT)
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [1e-20, 1.0, 1e4])
def test_what_comes_back_is_within_half_a_step(dtype: torch.dtype, of: torch.dtype, spread: float) -> None:
    x = (torch.randn(50, 3, 64, generator=torch.Generator().manual_seed(1)) * spread).to(of)
    wide, back = x.float(), restored(x, dtype)
    largest = wide.abs().amax(-1, keepdim=True)
    smallest = 2**-10 / 448 * largest if dtype is torch.float8_e4m3fn else 0  # below it fp8 has no exponent left
    step = HALF_STEP[dtype] * (largest if dtype is torch.int8 else wide.abs()) + smallest
    assert ((back - wide).abs() <= step * 1.001).all()
    torch.testing.assert_close(back.abs().amax(-1), wide.abs().amax(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", EIGHT_BIT)
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    assert torch.equal(restored(torch.zeros(2, 1, 8), dtype), torch.zeros(2, 1, 8))


def test_int8_rounds_ties_to_even() -> None:
    stored, _ = quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]), torch.int8)
    assert stored.tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("dtype", EIGHT_BIT)
def test_a_large_head_costs_its_neighbours_no_digits(dtype: torch.dtype) -> None:
    x = torch.randn(4, 2, 64, generator=torch.Generator().manual_seed(2))
    beside = x.clone()
    beside[:, 0] *= 1e6
    assert torch.equal(restored(x, dtype)[:, 1], restored(beside, dtype)[:, 1])


@pytest.mark.parametrize("dtype", EIGHT_BIT)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention_over_eight_bits_is_attention_over_what_they_stand_for(case: Case, dtype: torch.dtype) -> None:
    inputs = random_inputs(case, torch.float32)
    rounded = replace(
        inputs, keys=[restored(k, dtype) for k in inputs.keys], values=[restored(v, dtype) for v in inputs.values]
    )
    found, expected = run_case(case, inputs, "reference", dtype), run_case(case, rounded, "reference")
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.int8, 0.03), (torch.float8_e4m3fn, 0.1)])
def test_attention_over_eight_bits_stays_near_the_truth(dtype: torch.dtype, bound: float) -> None:
    case = Case("rows", ((200, 1), (47, 1), (30, 60)), head_dim=128)
    inputs: Inputs = random_inputs(case, torch.float32)
    found, expected = run_case(case, inputs, "reference", dtype), run_case(case, inputs, "reference")
    assert (found - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("write", [write_kv, write_unread])
@pytest.mark.parametrize("dtype", [torch.float32, *EIGHT_BIT])
@pytest.mark.parametrize(
    ("slots", "expected"), [([5, -1, 2], [2, 5]), ([-1, 4, -1], [4]), ([-1, -1, -1], []), ([0, 7, 3], [0, 3, 7])]
)
def test_padding_is_not_written(
    write: Callable[..., None], dtype: torch.dtype, slots: list[int], expected: list[int]
) -> None:
    cache = new_cache(2, 4, 2, 8, dtype=dtype, device=CPU, implementation="reference")
    for part in cache.tensors():
        part.zero_()
    key, value = torch.randn(2, 3, 2, 8)
    write(key, value, cache, torch.tensor(slots))
    written = cache.keys.float().abs().sum((-1, -2)).flatten() > 0
    assert written.nonzero().flatten().tolist() == expected
    row = next((row for row, slot in enumerate(slots) if slot >= 0), None)
    if row is not None:
        block, offset = divmod(slots[row], 4)
        stored, scale = (key[row], 1.0) if dtype is torch.float32 else quantize(key[row], dtype)
        assert torch.equal(cache.keys[block, offset].float(), stored.float())
        if cache.key_scales is not None:
            assert torch.equal(cache.key_scales[block, offset], torch.as_tensor(scale))


@pytest.mark.parametrize("dtype", EIGHT_BIT)
def test_a_copied_block_brings_its_scales(dtype: torch.dtype) -> None:
    cache = new_cache(3, 4, 2, 8, dtype=dtype, device=CPU, implementation="reference")
    write_kv(torch.randn(4, 2, 8), torch.randn(4, 2, 8), cache, torch.arange(4))
    cache.copy_blocks(torch.tensor([0]), torch.tensor([2]))
    for part in cache.tensors():
        assert torch.equal(part[2].float(), part[0].float())


class NoIndexOfFloat8(TorchDispatchMode):
    """As some versions of torch are on a GPU."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operation.name().split(".")[0]
        if name.startswith("aten::index") and args[0].dtype is torch.float8_e4m3fn:
            raise NotImplementedError(f"{name} of float8")
        return operation(*args, **(kwargs or {}))


def test_no_index_into_float8_is_needed() -> None:
    case = Case("rows", ((20, 1), (0, 30)))
    inputs = random_inputs(case, torch.float32)
    cache = new_cache(3, 4, 2, 8, dtype=torch.float8_e4m3fn, device=CPU, implementation="reference")
    key, value = torch.randn(2, 4, 2, 8)
    with NoIndexOfFloat8():
        with pytest.raises(NotImplementedError):
            cache.keys[torch.tensor([0])]
        run_case(case, inputs, "reference", torch.float8_e4m3fn)
        write_unread(key, value, cache, torch.arange(4))
        cache.copy_blocks(torch.tensor([0]), torch.tensor([2]))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of the pages")
@pytest.mark.parametrize("implementation", ["native", "cpu"])
def test_a_cache_on_the_host_grows_by_small_pages(implementation: str) -> None:
    cache = new_cache(64, 64, 8, 64, dtype=torch.bfloat16, device=torch.device("cpu"), implementation=implementation)
    for tensor in (cache.keys, cache.values):
        middle = tensor.data_ptr() + tensor.nbytes // 2
        areas = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        (area,) = (
            each
            for each in areas
            if (span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", each)) and int(span[1], 16) <= middle < int(span[2], 16)
        )
        assert " nh" in area.split("VmFlags:")[1]
