"""Triton's attention, interpreted, gives the reference's numbers in every case, and a row's bits are its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leokernels import KVCache, attention, new_cache, write_kv
from leokernels.triton import tiles
from leokernels.triton.attention import WORKSPACE, Workspace, decode_chunks
from tests.kernels.paging import CASES, CPU, Case, Inputs, alone, poison, random_inputs, run_case, step_metadata

GROUPED = Case("grouped", ((20, 1), (700, 1), (5, 17), (33, 1), (120, 30)), heads=6, kv_heads=2)
SINGLE = Case("single", ((20, 1), (700, 1), (5, 17), (33, 1), (120, 30)), heads=2, kv_heads=2, head_dim=128)
LONG = Case("8k", ((8191, 1), (8000, 150)), heads=1, kv_heads=1, block_size=64)
EIGHT_BIT = (torch.int8, torch.float8_e4m3fn)


def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles of an H100 instead of the interpreter's small ones; but the interpreter knows no early starts."""
    monkeypatch.setattr(tiles, "capability", lambda device: (9, 0))
    monkeypatch.setattr(tiles, "early", lambda capability, rows: False)


def assert_agrees(case: Case, dtype: torch.dtype, cached: torch.dtype | None = None) -> None:
    """With the reference over the same cache in float32, within the rounding of `dtype`."""
    inputs = random_inputs(case, dtype)
    wide = Inputs(inputs.query.float(), [k.float() for k in inputs.keys], [v.float() for v in inputs.values])
    found, expected = run_case(case, inputs, "triton", cached), run_case(case, wide, "reference", cached)
    assert found.dtype is dtype
    if dtype is torch.float32:
        torch.testing.assert_close(found, expected, atol=3e-5, rtol=2e-4)
    else:
        assert ((found.float() - expected).norm() / expected.norm()).item() < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    assert_agrees(case, dtype)


@pytest.mark.parametrize("cached", EIGHT_BIT, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", [GROUPED, SINGLE, replace(GROUPED, window=50)], ids=["grouped", "single", "window"])
def test_an_8_bit_cache_is_read_as_the_reference_reads_it(case: Case, dtype: torch.dtype, cached: torch.dtype) -> None:
    assert_agrees(case, dtype, cached)


def test_small_values_of_an_8_bit_cache_keep_their_digits_in_float16() -> None:
    inputs = random_inputs(GROUPED, torch.float16)
    small = Inputs(inputs.query, inputs.keys, [(v.float() / 1024).half() for v in inputs.values])
    found, expected = (run_case(GROUPED, small, name, torch.int8).float() for name in ("triton", "reference"))
    assert ((found - expected).norm() / expected.norm()).item() < torch.finfo(torch.float16).eps


@pytest.mark.parametrize("window", [None, 1000])
def test_a_context_of_8k_agrees_with_the_tiles_of_a_large_gpu(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    large_tiles(monkeypatch)
    assert_agrees(replace(LONG, window=window), torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", [GROUPED, SINGLE, replace(GROUPED, window=50)], ids=["grouped", "single", "window"])
def test_a_row_has_the_same_bits_alone_and_beside_others(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = random_inputs(case, dtype)
    together = run_case(case, inputs, "triton")
    monkeypatch.setattr(tiles, "DECODE_PROGRAMS", 1)  # one program takes all of a row's chunks
    begin = 0
    for row, (_, count) in enumerate(case.rows):
        if row != 3:  # a row of one token that is no decode row here and would be one alone
            by_itself = run_case(*alone(case, inputs, row), "triton")
            assert torch.equal(by_itself, together[begin : begin + count]), f"row {row}"
        begin += count


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2)])
@pytest.mark.parametrize("large", [False, True], ids=["small tiles", "large tiles"])
def test_a_prompt_has_the_same_bits_however_it_is_cut_into_chunks(
    large: bool, heads: int, kv_heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        large_tiles(monkeypatch)
    whole = Case("prompt", ((0, 280),), heads, kv_heads, 64, 32, window)
    inputs = random_inputs(whole, torch.float16)
    expected = run_case(whole, inputs, "triton")
    for start, stop in ((0, 100), (100, 102), (102, 230), (90, 280)):
        part = Inputs(inputs.query[start:stop], [inputs.keys[0][:stop]], [inputs.values[0][:stop]])
        found = run_case(replace(whole, rows=((start, stop - start),)), part, "triton")
        assert torch.equal(found, expected[start:stop]), f"tokens {start} to {stop}"


shapes = st.sampled_from([(1, 1, 64), (2, 2, 64), (4, 2, 64), (6, 2, 64), (8, 1, 128)])
decode_rows = st.lists(st.tuples(st.integers(0, 600), st.just(1)), max_size=3)
prefill_rows = st.lists(st.tuples(st.integers(0, 150), st.integers(1, 70)), max_size=2)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shapes, decode_rows, prefill_rows, st.integers(0, 8), st.none() | st.integers(1, 300), st.integers(0, 2**31))
def test_any_step_agrees_with_the_reference(
    shape: tuple[int, int, int],
    decode: list[tuple[int, int]],
    prefill: list[tuple[int, int]],
    block_bits: int,
    window: int | None,
    seed: int,
) -> None:
    rows = tuple(decode + prefill) or ((0, 1),)
    assert_agrees(Case("random", rows, *shape, 2**block_bits, window, seed=seed), torch.float32)


class Length(list[int]):
    """A host list of which only the length may be asked."""

    def __getitem__(self, place: object) -> int:  # type: ignore[override]
        raise AssertionError("a kernel's grid depends on a row's length")

    def __iter__(self) -> None:  # type: ignore[override]
        raise AssertionError("a kernel's grid depends on the rows' lengths")


def filled_cache(count: int, block_size: int = 16) -> KVCache:
    """A cache whose first `count` slots are one sequence's, the others NaN."""
    cache = new_cache(8, block_size, 2, 64, dtype=torch.float32, device=CPU, implementation="triton")
    poison(cache)
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(count, 2, 64, generator=generator) for _ in range(2))
    write_kv(key, value, cache, torch.arange(count))
    return cache


@pytest.mark.parametrize("heads", [2, 8])
def test_padding_rows_of_a_graph_give_zeros_and_bounds_above_the_lengths_change_nothing(heads: int) -> None:
    cache, query = filled_cache(40), torch.randn(4, heads, 64, generator=torch.Generator().manual_seed(2))
    metadata = step_metadata([(39, 1)], [[0, 1, 2]], 16)
    expected = attention(query[:1], cache, metadata, scale=0.1, implementation="reference")
    padded = replace(
        metadata,
        num_decode=4,
        query_start=torch.arange(5, dtype=torch.int32),
        context_len=torch.tensor([40, 0, 0, 0], dtype=torch.int32),
        block_table=torch.tensor([[0, 1, 2], *[[2**31 - 1] * 3] * 3], dtype=torch.int32),
        query_lens=Length([1] * 4),
        context_lens=Length([40, 0, 0, 0]),
        max_context=2000,
        plans={},
    )
    out = torch.full_like(query, float("nan"))
    attention(query, cache, padded, scale=0.1, out=out, implementation="triton")
    torch.testing.assert_close(out[:1], expected, atol=3e-5, rtol=2e-4)
    assert not out[1:].any()


def test_prefill_rows_without_tokens_and_a_bound_above_the_lengths_change_nothing() -> None:
    cache, query = filled_cache(40), torch.randn(9, 2, 64, generator=torch.Generator().manual_seed(2))
    metadata = step_metadata([(31, 9)], [[0, 1, 2]], 16)
    expected = attention(query, cache, metadata, scale=0.1, implementation="reference")
    padded = replace(
        metadata,
        query_start=torch.tensor([0, 9, 9], dtype=torch.int32),
        context_len=torch.tensor([40, 0], dtype=torch.int32),
        block_table=torch.tensor([[0, 1, 2], [2**31 - 1] * 3], dtype=torch.int32),
        query_lens=Length([9, 0]),
        context_lens=Length([40, 0]),
        max_query=100,
        plans={},
    )
    found = attention(query, cache, padded, scale=0.1, implementation="triton")
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=2e-4)


def test_queries_and_outputs_may_be_parts_of_larger_tensors() -> None:
    cache, qkv = filled_cache(40), torch.randn(10, 2 + 4, 64, generator=torch.Generator().manual_seed(2))
    metadata = step_metadata([(39, 1), (31, 9)], [[0, 1, 2], [0, 1, 2]], 16)
    out = torch.full((12, 3, 64), float("nan"))
    attention(qkv[:, :2], cache, metadata, scale=0.1, out=out[1:11, :2], implementation="triton")
    expected = attention(qkv[:, :2], cache, metadata, scale=0.1, implementation="reference")
    torch.testing.assert_close(out[1:11, :2], expected, atol=3e-5, rtol=2e-4)
    assert out[:, 2].isnan().all()
    assert out[0].isnan().all()
    assert out[11].isnan().all()


def test_layers_share_a_workspace_and_what_it_held_does_not_get_through() -> None:
    cache, query = filled_cache(40), torch.ones(1, 2, 64)
    metadata = step_metadata([(39, 1)], [[0, 1, 2]], 16)
    expected = attention(query, cache, metadata, scale=0.1, implementation="reference")
    given_space = Workspace.new(3, 2, 64, max_context=3000, window=None, device=CPU)
    given_space.partial.fill_(float("nan"))
    given_space.log_sums.fill_(float("nan"))
    metadata.plans[WORKSPACE] = given_space
    found = attention(query, cache, metadata, scale=0.1, implementation="triton")
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=2e-4)
    assert metadata.plans[WORKSPACE] is given_space


def test_the_first_layer_makes_a_workspace_for_the_others() -> None:
    cache, query = filled_cache(40), torch.ones(1, 2, 64)
    metadata = step_metadata([(39, 1)], [[0, 1, 2]], 16)
    attention(query, cache, metadata, scale=0.1, implementation="triton")
    made = metadata.plans[WORKSPACE]
    attention(query, cache, metadata, scale=0.1, implementation="triton")
    assert metadata.plans[WORKSPACE] is made


@pytest.mark.parametrize(
    ("max_context", "window", "chunks"),
    [(0, None, 1), (256, None, 1), (257, None, 2), (9000, 1, 1), (9000, 2, 2), (9000, 257, 2), (9000, 258, 3)],
)
def test_a_row_has_no_more_chunks_than_its_window_can_touch(max_context: int, window: int | None, chunks: int) -> None:
    assert decode_chunks(max_context, window) == chunks


@pytest.mark.parametrize("what", ["cache", "query"])
def test_tensors_that_the_kernels_cannot_read_are_refused(what: str) -> None:
    cache, query = filled_cache(40), torch.ones(1, 2, 64)
    if what == "cache":
        cache.keys = cache.keys.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    metadata = step_metadata([(39, 1)], [[0, 1, 2]], 16)
    with pytest.raises(ValueError, match="the Triton attention"):
        attention(query, cache, metadata, scale=0.1, out=torch.empty(1, 2, 64), implementation="triton")


def test_every_gpu_has_tiles() -> None:
    capabilities = ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
    for shape in product(capabilities, (64, 128), (1, 4, 8), (1, 2), (False, True)):
        assert tiles.prefill(*shape).rows >= 16
        assert tiles.CHUNK % tiles.decode(*shape).keys == 0
