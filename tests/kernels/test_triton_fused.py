"""Triton's fused operations give the torch versions' numbers, and write where they should and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leokernels import KVCache
from leokernels.cache import EIGHT_BIT
from leokernels.fused import TORCH
from leokernels.triton import fused

DTYPES = [torch.float32, torch.float16]  # the interpreter's bfloat16 is not to be trusted
BLOCKS, BLOCK_SIZE = 3, 4
UNTOUCHED = 99  # what a cache holds where nothing was written


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def close(found: Tensor, expected: Tensor) -> None:
    """To within one rounding of the dtype."""
    eps = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(found, expected, rtol=2 * eps, atol=eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 96, 1000])
def test_the_norm_of_a_sum_is_torchs_and_the_sum_takes_the_residuals_place(hidden: int, dtype: torch.dtype) -> None:
    x, residual = draw(5, hidden, dtype=dtype), draw(5, hidden, dtype=dtype, seed=1, scale=4)
    weight = draw(hidden, dtype=dtype, seed=2)
    expected, expected_sum = TORCH.rms_norm(x, weight, 1e-5, residual.clone())
    normed, summed = fused.rms_norm(x, weight, 1e-5, residual)
    assert normed.dtype is dtype
    assert torch.equal(summed, expected_sum)
    assert summed.data_ptr() == residual.data_ptr()
    close(normed, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_without_a_residual_leaves_x_as_it_is(dtype: torch.dtype) -> None:
    x, weight = draw(3, 96, dtype=dtype), draw(96, dtype=dtype, seed=2)
    before = x.clone()
    normed, summed = fused.rms_norm(x, weight, 1e-6)
    assert torch.equal(summed, before)
    assert torch.equal(x, before)
    close(normed, TORCH.rms_norm(x, weight, 1e-6)[0])


def test_the_norm_of_zeros_is_zero() -> None:
    assert not fused.rms_norm(torch.zeros(2, 64), torch.ones(64), 1e-5)[0].any()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, of a gate of -10,000
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [8, 1000, 1500])
def test_silu_times_up_is_torchs(inner: int, dtype: torch.dtype) -> None:
    gate_up = draw(3, 2 * inner, dtype=dtype, scale=5)
    gate_up[0, :4] = torch.tensor([-1e4, 1e4, 0.0, -90.0])
    found = fused.silu_and_mul(gate_up)
    assert found.shape == (3, inner)
    close(found, TORCH.silu_and_mul(gate_up))


def test_a_row_has_the_same_bits_alone_and_beside_others() -> None:
    x, residual, weight = draw(9, 1000), draw(9, 1000, seed=1), draw(1000, seed=2)
    normed, _ = fused.rms_norm(x, weight, 1e-5, residual.clone())
    activated = fused.silu_and_mul(x)
    for row in (0, 4, 8):
        part = slice(row, row + 1)
        assert torch.equal(fused.rms_norm(x[part], weight, 1e-5, residual[part].clone())[0], normed[part])
        assert torch.equal(fused.silu_and_mul(x[part]), activated[part])


def test_no_rows_is_no_work() -> None:
    assert fused.rms_norm(torch.zeros(0, 64), torch.ones(64), 1e-5, torch.zeros(0, 64))[0].shape == (0, 64)
    assert fused.silu_and_mul(torch.zeros(0, 64)).shape == (0, 32)
    none = torch.zeros(0, dtype=torch.int64)
    cache = new_cache(torch.float32, 2, 32)
    assert fused.rope_and_cache(torch.zeros(0, 8, 32), torch.zeros(0, 2, 1, 16), cache, none, 4, 2).shape == (0, 4, 32)


def new_cache(dtype: torch.dtype, kv_heads: int, head_dim: int) -> KVCache:
    shape = (BLOCKS, BLOCK_SIZE, kv_heads, head_dim)
    keys, values = (torch.full(shape, UNTOUCHED).to(dtype) for _ in range(2))
    scales = [torch.full(shape[:3], float(UNTOUCHED)) if dtype in EIGHT_BIT else None for _ in range(2)]
    return KVCache(keys, values, *scales)


def angles(rows: int, head_dim: int) -> Tensor:
    angle = torch.outer(torch.arange(rows) * 37.0 + 3, 10_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim))
    return torch.stack([angle.cos(), angle.sin()], 1)[:, :, None].contiguous()


def both(
    qkv: Tensor, slots: Tensor, heads: int, kv_heads: int, cached: torch.dtype
) -> tuple[Tensor, Tensor, KVCache, KVCache]:
    """Triton's and torch's queries and caches."""
    rows, _, head_dim = qkv.shape
    turn = angles(rows, head_dim)
    ours, expected = new_cache(cached, kv_heads, head_dim), new_cache(cached, kv_heads, head_dim)
    query = fused.rope_and_cache(qkv, turn, ours, slots, heads, kv_heads)
    return query, TORCH.rope_and_cache(qkv, turn, expected, slots, heads, kv_heads), ours, expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 64), (6, 2, 128), (20, 1, 32), (20, 20, 16)])
def test_queries_are_rotated_and_keys_and_values_go_to_their_slots(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    qkv = draw(4, heads + 2 * kv_heads, head_dim, dtype=dtype)
    slots = torch.tensor([7, 0, 11, 4])
    query, expected_query, ours, expected = both(qkv, slots, heads, kv_heads, dtype)
    assert query.is_contiguous()
    close(query, expected_query)
    close(ours.keys, expected.keys)
    assert torch.equal(ours.values, expected.values)


@pytest.mark.parametrize("cached", [torch.float32, torch.int8])
def test_padding_is_rotated_and_written_nowhere(cached: torch.dtype) -> None:
    qkv = draw(5, 4 + 4, 32)
    query, expected_query, ours, expected = both(qkv, torch.tensor([-1, 5, -1]), 4, 2, cached)
    close(query, expected_query)
    for found, wanted in zip(ours.tensors(), expected.tensors(), strict=True):
        close(found.float(), wanted.float())
        written = (found != UNTOUCHED).flatten(2).any(2)
        assert written.nonzero().tolist() == [[1, 1]]


def lost_carry(x: Tensor, rounded: Tensor) -> Tensor:
    """Where Triton's interpreter converts to float8 wrongly: what is rounded up to a power of two loses the carry."""
    return (torch.frexp(rounded.abs())[0] == 0.5) & (x.abs() < rounded.abs())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cached", list(EIGHT_BIT), ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 64), (6, 2, 128), (20, 20, 16)])
def test_eight_bits_are_torchs_with_a_scale_for_each_token_and_head(
    heads: int, kv_heads: int, head_dim: int, cached: torch.dtype, dtype: torch.dtype
) -> None:
    qkv = draw(3, heads + 2 * kv_heads, head_dim, dtype=dtype, scale=3)
    qkv[1, heads] = 0  # a key of zeros
    qkv[2, heads + kv_heads] *= 100
    slots = torch.tensor([7, 0, 11])
    _, _, ours, expected = both(qkv, slots, heads, kv_heads, cached)
    pairs = ((ours.keys, ours.key_scales, expected.keys, expected.key_scales, heads),)
    pairs += ((ours.values, ours.value_scales, expected.values, expected.value_scales, heads + kv_heads),)
    for found, scales, wanted, wanted_scales, first in pairs:
        assert scales is not None
        assert wanted_scales is not None
        close(scales, wanted_scales)
        found, wanted = found.flatten(0, 1)[slots].float(), wanted.flatten(0, 1)[slots].float()
        if cached is torch.float8_e4m3fn and first > heads:
            exact = qkv[:, first:].float() / scales.flatten(0, 1)[slots][..., None]
            found = torch.where(lost_carry(exact, wanted), wanted, found)
            assert torch.equal(found, wanted)
        if cached is torch.int8:  # rotated keys may differ by a rounding, and so by a step at a border
            assert ((found - wanted).abs() <= (1 if first == heads else 0)).all()


@pytest.mark.parametrize("cached", list(EIGHT_BIT), ids=str)
def test_what_is_stored_is_what_was_written_to_within_a_step(cached: torch.dtype) -> None:
    qkv = draw(3, 4, 64, scale=10)
    ours = new_cache(cached, 1, 64)
    fused.rope_and_cache(qkv, angles(3, 64), ours, torch.tensor([2, 3, 9]), 2, 1)
    assert ours.value_scales is not None
    scale = ours.value_scales.flatten(0, 1)[[2, 3, 9]][..., None]
    stored = ours.values.flatten(0, 1)[[2, 3, 9]].float()
    value = qkv[:, 3:]
    if cached is torch.int8:
        assert ((stored * scale - value).abs() <= scale * 0.5001).all()
    else:
        right = ~lost_carry(value / scale, (value / scale).to(cached).float())
        error = (stored * scale - value).abs()
        assert (error <= torch.maximum(value.abs() / 16, scale * 2**-10) * 1.0001)[right].all()
    assert (stored.abs().amax(-1) == EIGHT_BIT[cached]).all()
