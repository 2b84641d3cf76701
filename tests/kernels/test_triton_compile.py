"""Triton's attention compiles for every GPU it is made for, without spilling and within its shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch

from leokernels import AttentionMetadata, KVCache
from leokernels.triton.tiles import Tile
from tests.kernels.compiling import REGISTERS, SHARED, Capability, Scenario, reports

pytestmark = pytest.mark.timeout(1200)  # compiling is work, and other tests may run beside it
FP8_SINCE = (8, 9)
REGISTER_FILE = 65536  # registers of a multiprocessor
KERNELS = {"paged_decode", "paged_decode_grouped", "decode_combine", "paged_prefill"}


def step(
    heads: int, kv_heads: int, head_dim: int, cached: torch.dtype, block_size: int = 64, window: int | None = None
) -> None:
    """A decode row and a prefill row of a network of these proportions; nothing of the tensors is looked at."""
    from leokernels.triton.attention import attention

    query = torch.empty(17, heads, head_dim, dtype=torch.bfloat16)
    shape = (4, block_size, kv_heads, head_dim)
    scales = [torch.empty(shape[:3]) if cached.itemsize == 1 else None for _ in range(2)]
    metadata = AttentionMetadata(
        num_decode=1,
        query_start=torch.tensor([0, 1, 17], dtype=torch.int32),
        context_len=torch.tensor([1, 16], dtype=torch.int32),
        block_table=torch.zeros(2, 2, dtype=torch.int32),
        slot_mapping=torch.zeros(17, dtype=torch.int64),
        query_lens=[1, 16],
        context_lens=[1, 16],
        max_query=16,
        max_context=16,
    )
    cache = KVCache(torch.empty(shape, dtype=cached), torch.empty(shape, dtype=cached), *scales)
    attention(query, cache, metadata, scale=0.1, window=window, out=torch.empty_like(query))


def attention_scenarios(capability: Capability) -> Iterator[Scenario]:
    yield "7B", lambda: step(32, 32, 128, torch.bfloat16)
    yield "7B, blocks of 16", lambda: step(32, 32, 128, torch.bfloat16, block_size=16)
    yield "7B, int8", lambda: step(32, 32, 128, torch.int8)
    yield "70B", lambda: step(64, 8, 128, torch.bfloat16)
    yield "70B, int8", lambda: step(64, 8, 128, torch.int8)
    yield "70B, int8, a window", lambda: step(64, 8, 128, torch.int8, window=4096)
    yield "Mistral, a window", lambda: step(32, 8, 128, torch.bfloat16, window=4096)
    yield "heads of 64", lambda: step(12, 12, 64, torch.bfloat16)
    yield "grouped heads of 64", lambda: step(32, 8, 64, torch.bfloat16)
    if capability >= FP8_SINCE:
        yield "7B, fp8", lambda: step(32, 32, 128, torch.float8_e4m3fn)


@pytest.mark.parametrize("capability", SHARED, ids=str)
def test_attention_compiles_without_spilling_and_within_shared_memory(capability: Capability) -> None:
    compiled = reports(f"{__name__}:{attention_scenarios.__name__}", capability)
    assert {report.kernel for report in compiled} == KERNELS
    for report in compiled:
        assert report.stack == 0, report
        assert report.registers <= REGISTERS, report
        assert report.registers * report.warps * 32 <= REGISTER_FILE, report
        assert report.shared <= SHARED[capability], report


def test_a_kernel_that_spills_is_seen() -> None:
    """The gate can fail: a tile far too large for its warps needs stack memory."""
    compiled = reports(f"{__name__}:{too_large_scenarios.__name__}", (9, 0))
    assert max(report.stack for report in compiled) > 0


def too_large_scenarios(capability: Capability) -> Iterator[Scenario]:
    def call() -> None:
        with mock.patch("leokernels.triton.tiles.prefill", return_value=Tile(rows=128, keys=64, warps=4, stages=2)):
            step(32, 32, 128, torch.bfloat16)

    yield "four warps", call
