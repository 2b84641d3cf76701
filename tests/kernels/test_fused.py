"""What lies between the matrix products: the numbers of the published network, written out, in every dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leokernels import KVCache, new_cache
from leokernels.cache import EIGHT_BIT, quantize
from leokernels.fused import TORCH, rotate
from tests.kernels.paging import CPU, poison

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEADS, KV_HEADS, HEAD_DIM, ROWS = 4, 2, 64, 5


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def angles(rows: int, head_dim: int = HEAD_DIM) -> Tensor:
    angle = torch.outer(torch.arange(rows) + 3.0, 10_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim))
    return torch.stack([angle.cos(), angle.sin()], 1)[:, :, None]


def empty_cache(dtype: torch.dtype) -> KVCache:
    cache = new_cache(3, 4, KV_HEADS, HEAD_DIM, dtype=dtype, device=CPU, implementation="reference")
    poison(cache)
    return cache


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_adds_first_and_returns_the_sum(dtype: torch.dtype) -> None:
    x, residual, weight = (draw(*shape, dtype=dtype, seed=n) for n, shape in enumerate([(3, 96), (3, 96), (96,)]))
    normed, summed = TORCH.rms_norm(x, weight, 1e-5, residual)
    assert torch.equal(summed, x + residual)
    wide = summed.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert normed.dtype is dtype
    torch.testing.assert_close(normed.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_the_norm_without_a_residual_is_of_x_alone() -> None:
    x, weight = draw(3, 96, dtype=torch.float32), torch.ones(96)
    normed, summed = TORCH.rms_norm(x, weight, 1e-5)
    assert torch.equal(summed, x)
    assert torch.equal(normed, TORCH.rms_norm(x, weight, 1e-5, torch.zeros_like(x))[0])


def test_rotating_turns_each_pair_by_its_angle() -> None:
    x = draw(ROWS, HEADS, HEAD_DIM, dtype=torch.float64)
    turn = angles(ROWS).double()
    as_complex = torch.complex(*x.chunk(2, -1)) * torch.complex(turn[:, 0], turn[:, 1])
    expected = torch.cat([as_complex.real, as_complex.imag], -1)
    torch.testing.assert_close(rotate(x, turn.float()).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_come_back_and_keys_and_values_go_to_their_slots(dtype: torch.dtype) -> None:
    qkv, turn, cache = draw(ROWS, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=dtype), angles(ROWS), empty_cache(dtype)
    slots = torch.tensor([9, 0, -1, 7])  # the fifth row is padding of the products
    query = TORCH.rope_and_cache(qkv, turn, cache, slots, HEADS, KV_HEADS)
    rotated = rotate(qkv, turn)
    assert torch.equal(query, rotated[:, :HEADS])
    assert query.is_contiguous()
    keys, values = cache.keys.flatten(0, 1), cache.values.flatten(0, 1)
    for row, slot in ((0, 9), (1, 0), (3, 7)):
        assert torch.equal(keys[slot], rotated[row, HEADS : HEADS + KV_HEADS])
        assert torch.equal(values[slot], qkv[row, HEADS + KV_HEADS :])
    untouched = [slot for slot in range(12) if slot not in (9, 0, 7)]
    assert keys[untouched].isnan().all()
    assert values[untouched].isnan().all()


@pytest.mark.parametrize("dtype", EIGHT_BIT)
def test_an_eight_bit_cache_gets_quantized_keys_and_values(dtype: torch.dtype) -> None:
    qkv = draw(ROWS, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=torch.float32)
    turn, cache = angles(ROWS), empty_cache(dtype)
    TORCH.rope_and_cache(qkv, turn, cache, torch.tensor([3, 2, 1, 0, 11]), HEADS, KV_HEADS)
    stored, scales = quantize(rotate(qkv[:, HEADS : HEADS + KV_HEADS], turn), dtype)
    assert cache.key_scales is not None
    assert torch.equal(cache.keys.flatten(0, 1)[[3, 2, 1, 0, 11]].float(), stored.float())
    assert torch.equal(cache.key_scales.flatten(0, 1)[[3, 2, 1, 0, 11]], scales)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gate_lets_through_what_silu_says(dtype: torch.dtype) -> None:
    gate, up = draw(3, 40, dtype=dtype), draw(3, 40, dtype=dtype, seed=1)
    found = TORCH.silu_and_mul(torch.cat([gate, up], -1))
    expected = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    assert found.dtype is dtype
    torch.testing.assert_close(found.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
