"""The fused and the sampling kernels compile for every GPU they are made for; their host functions read no value."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from leokernels import KVCache
from tests.kernels.compiling import REGISTERS, SHARED, Capability, Scenario, reports

FP8_SINCE = (8, 9)
REGISTER_FILE = 65_536  # of a multiprocessor; a program's threads share it
KERNELS = {
    "rms_norm_kernel",
    "rope_and_cache_kernel",
    "silu_and_mul_kernel",
    "process_logits_kernel",
    "sample_kernel",
    "update_counts_kernel",
    "gather_logprobs_kernel",
}
ROWS, LLAMA_VOCAB = 4, 32_128
META = torch.device("meta")  # without storage: a host function that looked at a value would fail


def norm(hidden: int, residual: bool) -> None:
    from leokernels.triton.fused import rms_norm

    x = torch.empty(ROWS, hidden, dtype=torch.bfloat16, device=META)
    rms_norm(x, torch.empty(hidden, dtype=torch.bfloat16, device=META), 1e-5, x.clone() if residual else None)


def rope(heads: int, kv_heads: int, head_dim: int, cached: torch.dtype) -> None:
    from leokernels.triton.fused import rope_and_cache

    shape = (8, 64, kv_heads, head_dim)
    keys, values = (torch.empty(shape, dtype=cached, device=META) for _ in range(2))
    scales = [torch.empty(shape[:3], device=META) if cached.itemsize == 1 else None for _ in range(2)]
    qkv = torch.empty(ROWS, heads + 2 * kv_heads, head_dim, dtype=torch.bfloat16, device=META)
    angles = torch.empty(ROWS, 2, 1, head_dim // 2, device=META)
    slots = torch.empty(ROWS, dtype=torch.int64, device=META)
    rope_and_cache(qkv, angles, KVCache(keys, values, *scales), slots, heads, kv_heads)


def silu(inner: int) -> None:
    from leokernels.triton.fused import silu_and_mul

    silu_and_mul(torch.empty(ROWS, 2 * inner, dtype=torch.bfloat16, device=META))


def choose(vocab: int) -> None:
    from leokernels.triton import sampling

    state = sampling.SamplingState.empty(ROWS, vocab, [vocab - 1], META)
    logits = torch.empty(ROWS, vocab, dtype=torch.bfloat16, device=META)
    slots = torch.empty(ROWS, dtype=torch.int32, device=META)
    positions = torch.empty(ROWS, dtype=torch.int64, device=META)
    edited = sampling.process_logits(logits, slots, state)
    chosen = sampling.sample(edited, slots, positions, state)
    sampling.update_counts(chosen, slots, state)
    sampling.gather_logprobs(logits, chosen.tokens, slots, state.dead, 20)


def scenarios(capability: Capability) -> Iterator[Scenario]:
    yield "7B", lambda: norm(4096, residual=True)
    yield "7B, first layer", lambda: norm(4096, residual=False)
    yield "13B", lambda: norm(5120, residual=True)
    yield "70B", lambda: norm(8192, residual=True)
    yield "7B", lambda: silu(11_008)
    yield "7B", lambda: rope(32, 32, 128, torch.bfloat16)
    yield "70B, int8", lambda: rope(64, 8, 128, torch.int8)
    yield "heads of 64", lambda: rope(12, 12, 64, torch.bfloat16)
    if capability >= FP8_SINCE:
        yield "7B, fp8", lambda: rope(32, 32, 128, torch.float8_e4m3fn)
    yield "Llama's vocabulary", lambda: choose(LLAMA_VOCAB)


@pytest.mark.parametrize("capability", SHARED, ids=str)
def test_they_compile_without_spilling_and_within_shared_memory(capability: Capability) -> None:
    compiled = reports(f"{__name__}:{scenarios.__name__}", capability)
    assert {report.kernel for report in compiled} == KERNELS
    for report in compiled:
        assert report.stack == 0, report
        assert report.registers <= REGISTERS, report
        assert report.registers * report.warps * 32 <= REGISTER_FILE, report
        assert report.shared <= SHARED[capability], report


if __name__ == "__main__":
    for target in SHARED:
        for found in reports("tests.kernels.test_compile_fused:scenarios", target):
            print(target, found)
